"""Settings of the start of Ray and its workers, without a start: environment, memory, backend."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.resources import Workers
from npdraw_dist.distributed.run import ClusterTorchConfig, backend_for, choose_gloo_interface, own_interrupts
from npdraw_dist.distributed.start import start_ray, untried
from npdraw_dist.system.errors import UserError


def test_too_little_memory_for_ray_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "The requested object store memory size is greater than the total available memory."
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", mock.Mock(side_effect=ValueError(message)))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        mock.patch.dict(os.environ),
        pytest.raises(UserError, match=r"cannot start .* greater than the total available memory"),
    ):
        start_ray(ScaleConfig())


def test_a_ray_that_was_never_tried_gets_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert untried("2.59.1") is None
    assert untried("2.6.0") is not None
    monkeypatch.setattr(ray, "__version__", "3.1.0")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", mock.Mock())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with mock.patch.dict(os.environ):
        start_ray(ScaleConfig())
    assert capsys.readouterr().err.startswith("Ray 3.1.0 was not tried")


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


class Group:
    """In place of Ray Train's workers: whether torch finds a GPU in each of them."""

    def __init__(self, cuda: list[bool]) -> None:
        self.cuda = cuda

    def execute_single(self, rank: int, function: Callable[[], Any]) -> None:
        return None

    def execute(self, function: Callable[[], Any]) -> list[Any]:
        return self.cuda if function is torch.cuda.is_available else [None] * len(self.cuda)


@pytest.mark.parametrize(
    ("gpus", "cuda", "backend"),
    [
        (1.0, [True, True], "nccl"),
        (0.25, [True, True], "gloo"),  # NCCL refuses two ranks on one GPU
        (0.7, [True, True], "nccl"),  # a second one does not fit on the GPU
        (1.0, [True, False], "gloo"),  # a GPU that torch does not find
    ],
)
def test_workers_meet_by_a_backend_that_they_can_use(
    monkeypatch: pytest.MonkeyPatch, gpus: float, cuda: list[bool], backend: str
) -> None:
    """The trainer names the backend, if none is given, and passes it to the workers."""
    found: list[tuple[str | None, int]] = []

    def on_start(self: Any, group: Any, config: TorchConfig) -> None:
        found.append((config.backend, config.timeout_s))

    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", on_start)
    config = ClusterTorchConfig(backend_for(gpus), timeout_s=7)
    workers = Workers(2, 2, 1, gpus)
    scaling = ScalingConfig(num_workers=2, use_gpu=workers.gpu, resources_per_worker=workers.resources)
    TorchTrainer(lambda: None, torch_config=config, scaling_config=scaling)
    config.backend_cls().on_start(Group(cuda), config)
    assert found == [(backend, 7)]


@pytest.mark.parametrize(
    ("address", "set_before", "chosen"),
    [
        ("127.0.0.1", None, "lo"),
        ("127.0.0.1", "mine", "mine"),
        ("203.0.113.77", None, None),  # an address of documents: no interface has it
    ],
)
def test_gloo_takes_the_interface_of_the_nodes_address(
    monkeypatch: pytest.MonkeyPatch, address: str, set_before: str | None, chosen: str | None
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", set_before or "")
    if set_before is None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_gloo_interface()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == chosen
