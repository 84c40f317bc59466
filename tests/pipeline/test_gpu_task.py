"""Work of the driver on a GPU of the cluster: when it goes there, and that nothing changes without one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
import torch

from npdraw_dist.bank import search
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.pipeline import bank, gpu_task, sample, vae
from npdraw_dist.pipeline.gpu_task import has_gpu, on_gpu
from tests.helpers.runs import tiny
from tests.training.test_cluster import nodes

Work = Callable[..., Any]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def build(*each: dict[str, float]) -> None:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: nodes(*each))

    return build


def test_a_gpu_of_any_node_is_used_unless_it_is_forbidden(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0})
    assert has_gpu(ScaleConfig())
    assert has_gpu(ScaleConfig(gpus_per_worker=2))  # one is enough for what the driver does
    assert not has_gpu(ScaleConfig(use_gpu=False))
    cluster({"CPU": 4.0}, {"GPU": 1.0})  # no process could use it
    assert not has_gpu(ScaleConfig())


def test_a_gpu_that_is_required_may_join(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 4.0})
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert has_gpu(ScaleConfig(use_gpu=True))
    assert not has_gpu(ScaleConfig())
    monkeypatch.delenv("RAY_ADDRESS")
    assert not has_gpu(ScaleConfig(use_gpu=True))


def test_without_a_cluster_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert not has_gpu(ScaleConfig())


def test_without_a_gpu_the_driver_does_it_itself(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 4.0})
    done = on_gpu(ScaleConfig(), "sample", lambda device, *rest: (device, rest), 1, 2)
    assert done == ((torch.device("cpu"), (1, 2)), 0.0)


def test_a_process_has_the_threads_of_its_share() -> None:
    from npdraw_dist.training.workers import Node

    cluster = [Node(64), Node(32, 4), Node(8, 1)]
    assert gpu_task._threads(cluster, 1) == 8
    assert gpu_task._threads(cluster, 0.25) == 2
    assert gpu_task._threads(cluster, 0.01) == 1


@pytest.mark.parametrize("use_gpu", [None, True])
def test_the_bank_is_clustered_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch, use_gpu: bool | None) -> None:
    """The driver itself asks FAISS for nothing: its node can be without, and a context would stay."""
    taken: list[tuple[str, Any]] = []

    def elsewhere(scale: ScaleConfig, title: str, work: Work, *arguments: Any) -> tuple[Any, float]:
        taken.append((title, arguments[-1]))
        return (None, bank.BankFacts(1, 1, 0.0, [1], 0.0)), 5.0

    def refuse() -> bool:
        raise AssertionError("FAISS was asked in the driver")

    monkeypatch.setattr(bank, "has_gpu", lambda scale: True)
    monkeypatch.setattr(bank, "on_gpu", elsewhere)
    monkeypatch.setattr(search, "has_gpu", refuse)
    experiment = tiny()
    scale = experiment.scale.model_copy(update={"use_gpu": use_gpu})
    patches = np.zeros((1, 25), np.uint8)
    _, facts = bank._cluster(experiment.model_copy(update={"scale": scale}), patches)
    assert taken == [("bank", None)]  # on the GPU if FAISS finds it there
    assert facts.actor_core_seconds == 5.0


@pytest.mark.parametrize("module", [vae, sample])
def test_calibration_and_scores_go_there(module: Any) -> None:
    """`tests/pipeline/test_pretended_gpus.py` runs them."""
    assert module.on_gpu is on_gpu
