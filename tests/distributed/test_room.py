"""The number of workers that fit equals that of a search over all placements on CPUs and GPUs."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npdraw_dist.distributed.resources import (
    UNITS,
    Node,
    Workers,
    listed,
    most_cpus,
    per_gpu,
    ray_share,
    room,
)

NODES = st.lists(st.builds(Node, st.integers(0, 6), st.sampled_from([0.0, 1.0, 2.0])), max_size=3)
SHARES = st.sampled_from([0.0, 0.3, 0.4, 0.5, 0.75, 1.0])


def holds(node: Node, cpus: int, gpus: float, count: int) -> bool:
    """Whether `count` workers fit on a node, by trying each worker on every GPU."""
    if cpus * count > node.cpus:
        return False
    if gpus == 0:
        return True
    cards = range(int(node.gpus))
    return any(
        all(sum(card == chosen for chosen in placed) * gpus <= 1 for card in cards)
        for placed in product(cards, repeat=count)
    )


def placed(nodes: list[Node], cpus: int, gpus: float, count: int) -> bool:
    """Whether some division of the workers among the nodes works."""
    for each in product(range(count + 1), repeat=len(nodes)):
        fits = [holds(node, cpus, gpus, n) for node, n in zip(nodes, each, strict=True)]
        if sum(each) == count and all(fits):
            return True
    return False


@settings(max_examples=200, derandomize=True)
@given(NODES, st.integers(1, 4), SHARES, st.integers(1, 4))
def test_workers_fit_if_one_placement_of_all_works(
    nodes: list[Node], cpus: int, gpus: float, count: int
) -> None:
    assert (room(nodes, cpus, gpus) >= count) == placed(nodes, cpus, gpus, count)


@settings(max_examples=100, derandomize=True)
@given(NODES, st.integers(1, 4), SHARES)
def test_the_most_cpus_of_a_worker(nodes: list[Node], count: int, gpus: float) -> None:
    each = range(1, 7)
    most = max((n for n in each if placed(nodes, n, gpus, count)), default=0)
    assert most_cpus(nodes, count, gpus) == most


@pytest.mark.parametrize("share", [0.01, 0.15, 0.2, 0.25, 1 / 3, 0.34, 0.5, 0.7, 1.0])
def test_what_workers_request_fits_as_often_as_is_counted(share: float) -> None:
    """Both in Ray's units on each GPU and in the floats that Ray's coordinator subtracts."""
    requested, count = ray_share(share), per_gpu(share)
    assert Workers(2, 2, 4, share).resources == {"CPU": 4, "GPU": requested}
    assert round(requested * UNITS) * count <= UNITS
    assert round(requested * UNITS) >= min(round(share * UNITS), UNITS // count - 1)
    left = 1.0
    for _ in range(count):
        assert left >= requested
        left -= requested
    if count < 50:
        assert left < requested
    assert room([Node(0, 2.0)], 0, share) == 2 * count
    assert room([Node(0, 1 + requested)], 0, share) == count + 1  # a part of a GPU is free
    assert room([Node(8, 0.5)], 1, 1) == 0


def test_of_many_nodes_the_first_are_listed() -> None:
    assert listed([Node(1, address=str(n)) for n in range(10)]).endswith("; 7: 1 CPU; and 2 more")
