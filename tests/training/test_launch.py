"""How Ray is started, without starting it."""

import os
import signal
import sys
from unittest import mock

import pytest
import ray

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.launch import own_interrupts, start_ray


def test_a_machine_with_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("The requested object store memory size is greater than the total available memory.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        mock.patch.dict(os.environ),
        pytest.raises(UserError, match=r"cannot start .* greater than the total available memory"),
    ):
        start_ray(ScaleConfig())


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_an_interrupt_in_training_and_after_it() -> None:
    """Ray Train's handler of SIGINT stays after the training, and exits with status 0."""
    before = signal.getsignal(signal.SIGINT)

    def train() -> None:
        with own_interrupts():
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
