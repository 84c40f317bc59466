"""What a cluster can give: CPUs a worker on uneven nodes, and what is said where it is too little."""

from typing import Any

import pytest
import ray

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.training import resources
from npdraw_dist.training.resources import Workers, plan_workers


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
    monkeypatch.setattr(resources, "POLL_S", 0.01)
    monkeypatch.setattr(ray, "nodes", lambda: answers.pop(0))
    monkeypatch.setattr(resources, "request_resources", lambda bundles: asked.append(bundles))
    assert plan_workers(ScaleConfig(num_workers=2)) == Workers(2, 2, 1, False)
    assert asked == [[{"CPU": 1}, {"CPU": 1}], []]


def test_too_little_says_what_is_missing_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 4.0}, {"CPU": 2.0}))
    with pytest.raises(UserError) as raised:
        plan_workers(ScaleConfig(num_workers=2, cpus_per_worker=4))
    assert "2 workers of 4 CPUs need 8; the cluster has 6" in str(raised.value)
    assert "nodes: 10.0.0.1: 4 CPUs; 10.0.0.2: 2 CPUs" in str(raised.value)


def test_how_it_is_said() -> None:
    assert str(Workers(1, 1, 1, False)) == "1 worker of 1 CPU"
    assert str(Workers(2, 8, 4, True)) == "2 to 8 workers of 4 CPUs and a GPU"
