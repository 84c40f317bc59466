"""What a cluster can give: CPUs a worker on uneven nodes, and what is said where it is too little."""

from typing import Any

import pytest
import ray

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.training import cluster
from npdraw_dist.training.cluster import plan_workers
from npdraw_dist.training.workers import Workers


def nodes(*each: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"Alive": True, "NodeManagerAddress": f"10.0.0.{number}", "Resources": have}
        for number, have in enumerate(each, 1)
    ]


@pytest.mark.parametrize(
    ("cpus", "wanted", "reading", "planned"),
    [
        ([8], 2, False, Workers(2, 2, 4, False)),
        ([2, 8], 2, False, Workers(2, 2, 4, False)),  # 5 each would fit no second worker
        ([2, 8], 5, False, Workers(5, 5, 2, False)),
        ([1, 1, 1], 2, True, Workers(2, 2, 1, False)),
        ([4, 4], "2:8", False, Workers(2, 8, 1, False)),
        ([3], "2:8", False, Workers(2, 8, 1, False)),
    ],
)
def test_a_worker_fits_on_a_node(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], wanted: Any, reading: bool, planned: Workers
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*({"CPU": float(n)} for n in cpus)))
    assert plan_workers(ScaleConfig(num_workers=wanted), reading) == planned


# Of the review: the pool of all CPUs would give each worker 64.
UNEVEN = nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}, {"CPU": 64.0})


@pytest.mark.parametrize("reading", [False, True])
def test_nodes_without_gpus_do_not_size_workers_with_gpus(
    monkeypatch: pytest.MonkeyPatch, reading: bool
) -> None:
    """The CPU for reading is on a node without."""
    monkeypatch.setattr(ray, "nodes", lambda: UNEVEN)
    assert plan_workers(ScaleConfig(num_workers=2), reading) == Workers(2, 2, 8, 1)
    assert plan_workers(ScaleConfig(num_workers=3), reading).gpu is False
    with pytest.raises(UserError, match="2 workers of 16 CPUs need 32; the nodes with GPUs have 16"):
        plan_workers(ScaleConfig(num_workers=2, cpus_per_worker=16, use_gpu=True), reading)


@pytest.mark.parametrize(
    ("wanted", "share", "planned"),
    [
        ("1:4", 1, Workers(1, 4, 4, 1)),  # two GPUs: two workers, and more if nodes join
        ("1:2", 1, Workers(1, 2, 4, 1)),
        (4, 0.5, Workers(4, 4, 2, 0.5)),
        ("2:16", 0.25, Workers(2, 16, 1, 0.25)),
        (5, 0.5, Workers(5, 5, 1, 0)),
        (1, 2, Workers(1, 1, 8, 2)),
    ],
)
def test_shares_of_gpus_and_ranges(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, share: float, planned: Workers
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 8.0, "GPU": 2.0}))
    assert plan_workers(ScaleConfig(num_workers=wanted, gpus_per_worker=share)) == planned


def test_too_few_gpus_for_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 8.0, "GPU": 1.0}))
    with pytest.raises(UserError, match="5 workers need 2 GPUs; the cluster has 1"):
        plan_workers(ScaleConfig(num_workers=5, gpus_per_worker=0.3, use_gpu=True))


def test_cpus_in_pieces_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 2.0}, {"CPU": 8.0}))
    with pytest.raises(
        UserError, match="2 workers of 5 CPUs need 10; the cluster has 10, but room for 1 of them"
    ):
        plan_workers(ScaleConfig(num_workers=2, cpus_per_worker=5))


def test_ray_is_asked_for_a_share_that_fits_as_often() -> None:
    assert Workers(2, 2, 4).resources == {"CPU": 4}
    assert Workers(2, 2, 4, 1).resources == {"CPU": 4, "GPU": 1}
    asked = Workers(2, 2, 4, 0.4).resources["GPU"]
    assert asked == 0.5
    assert 0.1999 < Workers(2, 2, 4, 0.2).resources["GPU"] < 0.2


def test_a_gpu_each_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    two = nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", lambda: two)
    assert plan_workers(ScaleConfig(num_workers=2)) == Workers(2, 2, 8, True)
    assert plan_workers(ScaleConfig(num_workers=3)) == Workers(3, 3, 4, False)
    with pytest.raises(
        UserError, match=r"3 workers need 3 GPUs; the cluster has 2 .* 10\.0\.0\.2: 8 CPUs, 1 GPU"
    ):
        plan_workers(ScaleConfig(num_workers=3, use_gpu=True))


def test_it_waits_for_nodes_and_asks_the_autoscaler_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [nodes({"CPU": 1.0})] * 3 + [nodes({"CPU": 1.0}, {"CPU": 1.0})]
    asked: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    monkeypatch.setattr(ray, "nodes", lambda: answers.pop(0))
    monkeypatch.setattr(cluster, "request_resources", lambda bundles: asked.append(bundles))
    assert plan_workers(ScaleConfig(num_workers=2)) == Workers(2, 2, 1, False)
    assert asked == [[{"CPU": 1}, {"CPU": 1}], []]


def test_the_autoscaler_is_asked_for_shares_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 1.0}))
    monkeypatch.setattr(cluster, "request_resources", lambda bundles: asked.append(bundles))
    scale = ScaleConfig(num_workers=2, use_gpu=True, gpus_per_worker=0.5, cpus_per_worker=3, wait_s=1)
    with pytest.raises(UserError, match="2 workers need 1 GPU; the cluster has 0"):
        plan_workers(scale)
    assert asked == [[{"CPU": 3, "GPU": 0.5}] * 2]


def test_too_little_says_what_is_missing_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 4.0}, {"CPU": 2.0}))
    with pytest.raises(UserError) as raised:
        plan_workers(ScaleConfig(num_workers=2, cpus_per_worker=4))
    assert "2 workers of 4 CPUs need 8; the cluster has 6" in str(raised.value)
    assert "nodes: 10.0.0.1: 4 CPUs; 10.0.0.2: 2 CPUs" in str(raised.value)


def test_how_it_is_said() -> None:
    assert str(Workers(1, 1, 1, False)) == "1 worker of 1 CPU"
    assert str(Workers(2, 8, 4, True)) == "2 to 8 workers of 4 CPUs and a GPU"
    assert str(Workers(4, 4, 1, 0.25)) == "4 workers of 1 CPU and 1/4 of a GPU"
    assert str(Workers(1, 1, 2, 2)) == "1 worker of 2 CPUs and 2 GPUs"
