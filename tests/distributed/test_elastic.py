"""How many workers an elastic run requests beside other users of the GPUs."""

import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from npdraw_dist.distributed import elastic
from npdraw_dist.distributed.elastic import LOOK_S, Size
from npdraw_dist.distributed.resources import Node, Workers

Cluster = SimpleNamespace


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Two nodes of 8 CPUs and 4 GPUs; `free` is what is free of them, and `passes(s)` lets time pass."""
    found = SimpleNamespace(nodes=[Node(8, 4.0), Node(8, 4.0)], free=Node(16, 8.0), now=0.0, requested=[])

    def passes(seconds: float) -> None:
        found.now += seconds

    found.passes = passes
    monkeypatch.setattr(time, "monotonic", lambda: found.now)
    monkeypatch.setattr(time, "sleep", passes)
    monkeypatch.setattr(elastic, "living_nodes", lambda: found.nodes)
    monkeypatch.setattr(elastic, "free_now", lambda: found.free)
    monkeypatch.setattr(Size, "request", lambda self, count: found.requested.append(count))
    return found


@pytest.mark.parametrize(
    ("free", "count"),
    [
        (Node(16, 8.0), 8),
        (Node(16, 5.0), 5),  # others have three GPUs
        (Node(3, 8.0), 3),  # others have CPUs
        (Node(16, 0.0), 2),  # the least number waits
    ],
)
def test_a_start_takes_what_is_free(free: Node, count: int, cluster: Cluster) -> None:
    cluster.free = free
    assert Size(Workers(2, 8, 1, 1.0)).start() == count


def test_a_start_waits_until_the_workers_before_it_have_freed_their_gpus(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.free = Node(16, 0.0)
    size = Size(Workers(2, 8, 1, 1.0))
    monkeypatch.setattr(elastic, "free_now", lambda: Node(16, 8.0 if cluster.now > 3 else 0.0))
    assert size.start() == 8
    assert cluster.now < 5


def test_a_start_does_not_wait_for_more_than_the_nodes_have(cluster: Cluster) -> None:
    cluster.nodes, cluster.free = [Node(8, 4.0)], Node(8, 4.0)
    assert Size(Workers(2, 8, 1, 1.0)).start() == 4
    assert cluster.now == 0


def test_a_number_that_found_no_place_is_not_requested_again_until_workers_run(cluster: Cluster) -> None:
    """Such as GPUs that are free on nodes without a free CPU."""
    size = Size(Workers(2, 8, 1, 1.0))
    counts = []
    for _ in range(8):
        counts.append(size.start())
        size.not_placed()
    assert counts == [8, 7, 6, 5, 4, 3, 2, 2]
    assert not size.grows()  # workers run
    assert size.start() == 8


def looks(size: Size, cluster: Cluster, number: int) -> list[bool]:
    found = []
    for _ in range(number):
        cluster.passes(LOOK_S + 1)
        found.append(size.grows())
    return found


def test_a_run_grows_when_two_looks_find_room(cluster: Cluster) -> None:
    cluster.free = Node(16, 3.0)
    size = Size(Workers(2, 8, 1, 1.0))
    assert size.start() == 3
    cluster.free = Node(13, 0.0)  # the run has the rest
    assert looks(size, cluster, 3) == [False] * 3
    cluster.free = Node(13, 2.0)
    assert not size.grows()  # not before the next look
    assert looks(size, cluster, 2) == [False, True]
    assert cluster.requested == [8] * 5
    cluster.free = Node(15, 5.0)  # the run has ended its workers
    assert size.start() == 5


def test_a_run_at_its_largest_or_of_a_fixed_number_looks_at_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest, fixed = Size(Workers(2, 8, 1, 1.0)), Size(Workers(4, 4, 1, 1.0))
    assert largest.start() == 8
    monkeypatch.setattr(elastic, "free_now", Mock(side_effect=AssertionError("it looked")))
    assert fixed.start() == 4
    assert looks(largest, cluster, 3) == looks(fixed, cluster, 3) == [False] * 3
    assert cluster.requested == []
