"""Each worker meets the others over the interface of its node's address, by a backend that they can use."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import ray
import torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import ScalingConfig

from npdraw_dist.training.controller import Trainer
from npdraw_dist.training.launch import (
    ClusterTorchConfig,
    backend_for,
    choose_gloo_interface,
)
from npdraw_dist.training.workers import Workers


class Group:
    """In place of Ray Train's workers: whether torch finds a GPU in each of them."""

    def __init__(self, cuda: list[bool]) -> None:
        self.cuda = cuda

    def execute(self, function: Callable[[], Any]) -> list[Any]:
        return self.cuda if function is torch.cuda.is_available else [None] * len(self.cuda)


@pytest.mark.parametrize(
    ("gpus", "cuda", "backend"),
    [
        (1.0, [True, True], "nccl"),
        (2.0, [True, True], "nccl"),
        (0.25, [True, True], "gloo"),  # NCCL refuses two ranks on one GPU
        (0.7, [True, True], "nccl"),  # a second one does not fit on the GPU
        (0.0, [False, False], "gloo"),
        (1.0, [True, False], "gloo"),  # a GPU that torch does not find
    ],
)
def test_the_backend(monkeypatch: pytest.MonkeyPatch, gpus: float, cuda: list[bool], backend: str) -> None:
    """As the trainer, which names the backend where it is not given, passes it to the workers."""
    found: list[tuple[str | None, int]] = []

    def on_start(self: Any, group: Any, config: TorchConfig) -> None:
        found.append((config.backend, config.timeout_s))

    monkeypatch.setattr(TorchConfig().backend_cls, "on_start", on_start)
    config = ClusterTorchConfig(backend_for(gpus), timeout_s=7)
    workers = Workers(2, 2, 1, gpus)
    scaling = ScalingConfig(num_workers=2, use_gpu=workers.gpu, resources_per_worker=workers.resources)
    Trainer(lambda: None, images=1, torch_config=config, scaling_config=scaling)
    config.backend_cls().on_start(Group(cuda), config)
    assert found == [(backend, 7)]


@pytest.mark.parametrize(("set_before", "chosen"), [(None, "lo"), ("mine", "mine")])
def test_what_the_user_set_stays(
    monkeypatch: pytest.MonkeyPatch, set_before: str | None, chosen: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", set_before or "")
    if set_before is None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == chosen


def test_an_unknown_interface_is_left_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.77")  # of documents
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_gloo_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
