"""The workers that fit a cluster: CPUs on uneven nodes, and the error where too few fit."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed import resources, start
from npdraw_dist.distributed.resources import Workers, plan_workers
from npdraw_dist.distributed.start import OWN_RAY, can_grow
from npdraw_dist.system.errors import UserError
from tests.conftest import nodes

CPUS = [2, 8]
GPUS = [(8, 1), (8, 1)]
# An average over all CPUs would give each worker 64.
UNEVEN = [*GPUS, 64, 64]
Cluster = Callable[..., None]


@pytest.mark.parametrize(
    ("each", "scale", "planned"),
    [
        (CPUS, {"num_workers": 2}, Workers(2, 2, 4)),  # 5 each would fit no second worker
        (CPUS, {"num_workers": 5}, Workers(5, 5, 2)),
        ([3], {"num_workers": "2:8"}, Workers(2, 8, 1)),
        (GPUS, {"num_workers": 2}, Workers(2, 2, 8, 1)),
        (GPUS, {"num_workers": 3}, Workers(3, 3, 4)),  # too few GPUs, and none is required
        (GPUS, {"num_workers": "1:4"}, Workers(1, 4, 8, 1)),  # two workers, and more if nodes join
        (GPUS, {"num_workers": 4, "gpus_per_worker": 0.5}, Workers(4, 4, 4, 0.5)),
        (UNEVEN, {"num_workers": 2}, Workers(2, 2, 8, 1)),  # nodes without GPUs do not count
        (UNEVEN, {"num_workers": 3}, Workers(3, 3, 32)),
    ],
)
def test_workers_are_as_large_as_fits(cluster: Cluster, each: Any, scale: Any, planned: Workers) -> None:
    cluster(*each)
    assert plan_workers(ScaleConfig(**scale)) == planned


@pytest.mark.parametrize(
    ("each", "scale", "words"),
    [
        (
            CPUS,
            {"num_workers": 3, "cpus_per_worker": 4},
            ["room for 3 workers of 4 CPUs, and has room for 2"],
        ),
        (CPUS, {"num_workers": 2, "cpus_per_worker": 5}, ["2 workers of 5 CPUs, and has room for 1"]),
        (GPUS, {"num_workers": 3, "use_gpu": True}, ["3 workers of 1 CPU and a GPU, and has room for 2"]),
        (
            GPUS,
            {"num_workers": 7, "use_gpu": True, "gpus_per_worker": 0.3},
            ["7 workers of 1 CPU and 1/3 of a GPU, and has room for 6"],
        ),
        (
            UNEVEN,
            {"num_workers": 2, "cpus_per_worker": 16, "use_gpu": True},
            ["2 workers of 16 CPUs and a GPU, and has room for 0", "use_gpu false"],
        ),
    ],
)
def test_too_little_says_what_is_missing_and_what_is_there(
    cluster: Cluster, each: Any, scale: Any, words: list[str]
) -> None:
    cluster(*each)
    with pytest.raises(UserError) as raised:
        plan_workers(ScaleConfig(**scale))
    assert all(word in str(raised.value) for word in [*words, "nodes: 10.0.0.1: ", "10.0.0.2: 8 CPUs"])


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests to the autoscaler of a cluster."""
    found: list[Any] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(resources, "POLL_S", 0.01)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: found.append(bundles))
    return found


def test_nodes_join_a_cluster_but_no_ray_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in an actor, such as a trial of a sweep, where RAY_ADDRESS is not set."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(OWN_RAY, raising=False)
    monkeypatch.setattr(start, "ray_runs", lambda: False)
    assert not can_grow()
    monkeypatch.setattr(start, "ray_runs", lambda: True)
    assert can_grow()
    monkeypatch.setenv(OWN_RAY, "1")
    assert not can_grow()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert can_grow()


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_process_of_a_local_ray_knows_that_no_node_joins() -> None:
    assert not ray.get(ray.remote(can_grow).remote())


def test_it_waits_for_nodes_and_repeats_its_request(
    monkeypatch: pytest.MonkeyPatch, requests: list[Any]
) -> None:
    answers = [nodes(1)] * 3 + [nodes(1, 1)]
    monkeypatch.setattr(ray, "nodes", lambda: answers.pop(0))
    lines: list[str] = []
    assert plan_workers(ScaleConfig(num_workers=2), lines.append) == Workers(2, 2, 1)
    (line,) = lines  # at once, and not again in this minute
    assert line.startswith("waits for nodes (0 of 20 s): the cluster needs room for 2 workers of 1 CPU")
    assert requests == [[{"CPU": 1}, {"CPU": 1}]] * 3 + [[]]


def test_shares_of_gpus_are_requested(cluster: Cluster, requests: list[Any]) -> None:
    cluster(1)
    scale = ScaleConfig(num_workers=2, use_gpu=True, gpus_per_worker=0.5, cpus_per_worker=3, wait_s=1)
    with pytest.raises(UserError, match="2 workers of 3 CPUs and 1/2 of a GPU, and has room for 0"):
        plan_workers(scale)
    assert requests[-2:] == [[{"CPU": 3, "GPU": 0.5}] * 2, []]  # taken back: else nodes come for no job


def test_an_interrupt_withdraws_the_request(
    cluster: Cluster, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(1)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(resources, "time", SimpleNamespace(monotonic=time.monotonic, sleep=interrupted))
    with pytest.raises(KeyboardInterrupt):
        plan_workers(ScaleConfig(num_workers=2))
    assert requests == [[{"CPU": 1}, {"CPU": 1}], []]
