"""One thread a test process: tiny tensors gain nothing from more, and machines are shared.

For the same reason no test by hypothesis fails for being slow. And a command's mistakes.
"""

import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, settings

from npdraw_dist.config.cli import run_command

torch.set_num_threads(1)
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(main, *argv): exit status 2 and exactly one line on stderr, which it returns."""

    def call(main: Callable[[Sequence[str]], None], *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert error.endswith("\n")
        return error

    return call
