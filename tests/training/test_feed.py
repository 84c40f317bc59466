"""The feed gives each training image once an epoch, with any number of ranks."""

import math
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.training.feed import Feed, MemoryFeed, Share, StreamFeed, noise_seed, prefetched

Step = list[int]


def numbered(n: int) -> Batch:
    """n images whose only pixel is the row's number, and parses whose *what* is it too."""
    row = torch.arange(n)
    z = PartSequence(torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, 1, dtype=torch.int64), row[:, None])
    return Batch.of(row.to(torch.uint8).view(n, 1, 1, 1), z)


def feed(n: int, batch: int, rank: int = 0, world: int = 1, seed: int = 3) -> MemoryFeed:
    return MemoryFeed(numbered(n), Share(batch, seed, rank, world))


def taken(source: Feed, first: int, steps: int) -> list[Step]:
    """The rank's row numbers of each of `steps` steps."""
    return [batch.images.flatten().tolist() for _, batch in islice(source.steps(first), steps)]


# Files of very different sizes, 97 rows in all.
FILES = (20, 1, 33, 7, 12, 24)


class Shelf:
    """`read` of a StreamFeed over numbered rows, in batches of 5; notes each call."""

    def __init__(self, files: Sequence[int] = FILES) -> None:
        self.calls: list[tuple[list[int], list[tuple[int, int]]]] = []
        self.files = list(numbered(sum(files)).images.flatten().split(list(files)))

    def __call__(self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        self.calls.append((order.tolist(), list(ranges)))
        ring = torch.cat([self.files[i] for i in order])
        rows = torch.cat([ring[start:stop] for start, stop in ranges]).long()
        everything = numbered(sum(map(len, self.files)))
        for batch in rows.split(5):
            yield everything[batch]


def streamed(
    batch: int = 8, lane: int = 2, rank: int = 0, world: int = 1, seed: int = 3, files: Sequence[int] = FILES
) -> StreamFeed:
    return StreamFeed(np.array(files), Shelf(files), Share(batch, seed, rank, world), 2 * batch, lane)


def of_kind(kind: str, rank: int = 0, world: int = 1, seed: int = 3) -> Feed:
    """97 rows, in batches of 10."""
    if kind == "memory":
        return feed(97, 10, rank, world, seed)
    return streamed(10, 2, rank, world, seed)


@pytest.mark.parametrize(("n", "batch"), [(24, 8), (20, 8), (7, 12)])
def test_every_epoch_is_a_permutation(n: int, batch: int) -> None:
    epochs = 5
    steps = taken(feed(n, batch), 0, -(-epochs * n // batch))
    assert {len(step) for step in steps} == {batch}  # none is short
    rows = list(chain.from_iterable(steps))
    orders = [rows[e * n : (e + 1) * n] for e in range(epochs)]
    assert [sorted(order) for order in orders] == [list(range(n))] * epochs
    assert len({tuple(order) for order in orders}) == epochs


@given(
    worlds=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=5),
    kind=st.sampled_from(["memory", "stream"]),
)
@settings(max_examples=30, derandomize=True)
def test_no_row_is_missing_or_double_if_the_ranks_change(worlds: list[tuple[int, int]], kind: str) -> None:
    """worlds: (number of ranks, steps) one after another, as an elastic run resumes."""
    step, found = 0, []
    for world, steps in worlds:
        ranks = [taken(of_kind(kind, rank, world), step, steps) for rank in range(world)]
        assert all(mine for rank in ranks for mine in rank), "a rank has no row"
        found += [list(chain.from_iterable(of_ranks)) for of_ranks in zip(*ranks, strict=True)]
        step += steps
    assert found == taken(of_kind(kind), 0, step)


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("first", [1, 12, 29])
def test_a_start_in_the_middle_is_the_same_as_skipping(kind: str, first: int) -> None:
    whole = taken(of_kind(kind), 0, first + 9)
    assert taken(of_kind(kind), first, 9) == whole[first:]


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_the_order_is_of_the_seed_and_images_keep_their_parses(kind: str) -> None:
    assert taken(of_kind(kind), 0, 20) == taken(of_kind(kind), 0, 20)
    assert taken(of_kind(kind), 0, 20) != taken(of_kind(kind, seed=4), 0, 20)
    for _, batch in islice(of_kind(kind).steps(0), 30):
        assert batch.images.flatten().tolist() == batch.z.what.flatten().tolist()


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_the_rows_of_a_rank_come_with_the_place_of_the_first(kind: str) -> None:
    for world in (1, 2, 3):
        places = [next(of_kind(kind, rank, world).steps(4)) for rank in range(world)]
        assert [first for first, _ in places] == [10 * rank // world for rank in range(world)]
        assert sum(len(batch) for _, batch in places) == 10


def test_noise_seeds_differ_and_fit_a_generator() -> None:
    seeds = {noise_seed(seed, step, part) for seed in range(3) for step in range(20) for part in range(8)}
    assert len(seeds) == 3 * 20 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("files", [FILES, (97,), (9, 2)])
@pytest.mark.parametrize(("batch", "lane"), [(8, 2), (6, 2), (4, 4), (9, 8)])
def test_a_stream_has_each_row_once_an_epoch(files: Sequence[int], batch: int, lane: int) -> None:
    lane = math.gcd(batch, lane)
    total, lanes, epochs = sum(files), batch // lane, 3
    whole = taken(streamed(batch, lane, files=files), 0, -(-epochs * total // batch) + 3)
    seen: list[list[int]] = [[] for _ in range(epochs)]
    for number in range(lanes):
        share = total * (number + 1) // lanes - total * number // lanes
        rows = [row for step in whole for row in step[number * lane : (number + 1) * lane]]
        for epoch in range(epochs):
            seen[epoch] += rows[epoch * share : (epoch + 1) * share]
    assert [sorted(rows) for rows in seen] == [list(range(total))] * epochs


def test_a_streamed_start_reads_from_its_window_on() -> None:
    source, shelf = streamed(), Shelf()
    source.read = shelf
    taken(source, 10, 1)  # 20 of the 24 rows of each lane, whose last window of 6 starts at row 20
    order, ((start, stop),) = shelf.calls[0]
    assert stop - start == 97 - 4 * 20
    assert sorted(order) == sorted([*range(6), *range(6)])


def test_ranks_read_each_row_of_an_epoch_once() -> None:
    read = []
    for rank in range(4):
        source, shelf = streamed(rank=rank, world=4), Shelf()
        source.read = shelf
        taken(source, 0, 1)
        order, ranges = shelf.calls[0]
        ring = torch.cat([shelf.files[i] for i in order])
        read += [row for start, stop in ranges for row in ring[start:stop].tolist()]
    assert sorted(read) == list(range(97))


def test_windows_mix_two_batches_or_more_and_change_with_the_epoch() -> None:
    source, shelf = streamed(batch=8, lane=8, files=(96,)), Shelf((96,))
    source.read = shelf
    rows = list(chain.from_iterable(taken(source, 0, 96)))  # 8 epochs
    mixed, orders = [], set()
    for epoch in range(8):
        order, ((start, stop),) = shelf.calls[epoch]
        orders.add((tuple(order), start))
        read = torch.cat([shelf.files[i] for i in order])[start:stop].tolist()
        for first in range(0, 96, 16):
            window = rows[epoch * 96 + first : epoch * 96 + first + 16]
            assert sorted(window) == sorted(read[first : first + 16])
            mixed.append(len(set(window[:8]) - set(read[first : first + 8])))
    assert len(orders) == 8
    assert sum(mixed) / len(mixed) == pytest.approx(4, abs=0.7)  # half of a batch of 8 out of 16


def prefetch_threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_a_prefetch_is_bounded_ordered_and_ends_with_its_reader() -> None:
    made: list[int] = []
    closed = threading.Event()

    def count() -> Iterator[int]:
        try:
            for i in range(1000):
                made.append(i)
                yield i
        finally:
            closed.set()

    items = prefetched(count(), 2)
    assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
    assert len(made) <= 5 + 2 + 1
    items.close()
    assert closed.wait(5)
    assert prefetch_threads() == 0
    assert list(prefetched(iter(range(4)), 2)) == [0, 1, 2, 3]


def test_a_prefetch_leaves_the_threads_of_torch_to_the_step() -> None:
    def count() -> Iterator[int]:
        while True:
            yield torch.get_num_threads()

    torch.set_num_threads(2)
    items = prefetched(count(), 1)
    assert list(islice(items, 3)) == [1, 1, 1]
    items.close()
    assert torch.get_num_threads() == 2


def test_an_error_of_the_reader_is_raised_in_the_step() -> None:
    def fails(order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        yield from islice(Shelf()(order, ranges), 4)
        raise OSError("the disk is gone")

    source = streamed()
    source.read = fails
    steps = source.steps(0)
    assert len(list(islice(steps, 2))) == 2  # the first window of 16 was whole
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)
    assert prefetch_threads() == 0
