"""The feed deals out each training image once an epoch, whatever the number of ranks."""

from itertools import islice

import pytest
import torch

from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.dist.feed import MemoryFeed, my_chunks, noise_seed

Step = list[tuple[int, list[int]]]


def numbered(n: int) -> Batch:
    """n images whose only pixel is the row's number, and parses whose *what* is it too."""
    row = torch.arange(n)
    z = PartSequence(torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, 1, dtype=torch.int64), row[:, None])
    return Batch(row.to(torch.uint8).view(n, 1, 1, 1), z)


def feed(n: int, batch: int, micro: int, rank: int = 0, world: int = 1, seed: int = 3) -> MemoryFeed:
    return MemoryFeed(numbered(n), batch, micro, seed, rank, world)


def taken(source: MemoryFeed, first: int, steps: int) -> list[Step]:
    """The row numbers of each micro-batch of `steps` steps."""
    return [
        [(chunk, batch.images.flatten().tolist()) for chunk, batch in step]
        for step in islice(source.steps(first), steps)
    ]


def stream(steps: list[Step]) -> list[int]:
    return [row for step in steps for _, rows in step for row in rows]


@pytest.mark.parametrize(("n", "batch", "micro"), [(24, 8, 4), (20, 8, 2), (7, 12, 3), (5, 5, 5)])
def test_every_epoch_is_a_permutation(n: int, batch: int, micro: int) -> None:
    epochs = 5
    rows = stream(taken(feed(n, batch, micro), 0, -(-epochs * n // batch)))
    orders = [rows[e * n : (e + 1) * n] for e in range(epochs)]
    assert [sorted(order) for order in orders] == [list(range(n))] * epochs
    assert len({tuple(order) for order in orders}) == epochs


def test_a_batch_spans_two_epochs_and_none_is_short() -> None:
    steps = taken(feed(10, 8, 4), 0, 5)
    assert [[len(rows) for _, rows in step] for step in steps] == [[4, 4]] * 5
    second = stream(steps[1:2])
    assert set(second[:2]) == set(range(10)) - set(stream(steps[:1]))
    assert len(set(second[2:])) == 6


@pytest.mark.parametrize(("world", "batch"), [(2, 12), (3, 12), (2, 9), (3, 15)])
def test_ranks_together_are_one_rank(world: int, batch: int) -> None:
    alone = taken(feed(20, batch, 3), 0, 6)
    ranks = [taken(feed(20, batch, 3, rank, world), 0, 6) for rank in range(world)]
    for step, whole in enumerate(alone):
        assert sorted(chunk for rank in ranks for chunk in rank[step]) == whole


@pytest.mark.parametrize("first", [1, 4, 17])
def test_a_start_in_the_middle_is_the_same_as_skipping(first: int) -> None:
    assert taken(feed(20, 8, 4), first, 6) == taken(feed(20, 8, 4), 0, first + 6)[first:]


def test_images_keep_their_parses() -> None:
    for step in islice(feed(20, 8, 4).steps(0), 6):
        for _, batch in step:
            assert batch.images.flatten().tolist() == batch.z.what.flatten().tolist()


def test_the_order_is_of_the_seed() -> None:
    assert taken(feed(20, 8, 4), 0, 5) == taken(feed(20, 8, 4), 0, 5)
    assert taken(feed(20, 8, 4), 0, 5) != taken(feed(20, 8, 4, seed=4), 0, 5)


@pytest.mark.parametrize(("chunks", "world"), [(1, 1), (4, 2), (5, 3), (3, 3)])
def test_every_rank_has_a_micro_batch(chunks: int, world: int) -> None:
    dealt = [list(my_chunks(chunks * 4, 4, rank, world)) for rank in range(world)]
    assert all(dealt)
    assert sorted(chunk for rank in dealt for chunk in rank) == list(range(chunks))


def test_noise_seeds_differ_and_fit_a_generator() -> None:
    seeds = {noise_seed(seed, step, chunk) for seed in range(3) for step in range(20) for chunk in range(8)}
    assert len(seeds) == 3 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
