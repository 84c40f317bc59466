"""The feed deals out each training image once an epoch, whatever the number of ranks."""

import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.training.feed import Feed, MemoryFeed, StreamFeed, my_chunks, noise_seed, prefetched

Step = list[tuple[int, list[int]]]


def numbered(n: int) -> Batch:
    """n images whose only pixel is the row's number, and parses whose *what* is it too."""
    row = torch.arange(n)
    z = PartSequence(torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, 1, dtype=torch.int64), row[:, None])
    return Batch.of(row.to(torch.uint8).view(n, 1, 1, 1), z)


def feed(n: int, batch: int, micro: int, rank: int = 0, world: int = 1, seed: int = 3) -> MemoryFeed:
    return MemoryFeed(numbered(n), batch, micro, seed, rank, world)


def taken(source: Feed, first: int, steps: int) -> list[Step]:
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


# Files of very different sizes, 97 rows in all.
FILES = (20, 1, 33, 7, 12, 24)


class Shelf:
    """`read` of a StreamFeed over numbered rows, in batches of 5; keeps what was asked."""

    def __init__(self, files: Sequence[int] = FILES) -> None:
        self.asked: list[tuple[list[int], list[tuple[int, int]]]] = []
        self.files = list(numbered(sum(files)).images.flatten().split(list(files)))

    def __call__(self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        self.asked.append((order.tolist(), list(ranges)))
        ring = torch.cat([self.files[i] for i in order])
        rows = torch.cat([ring[start:stop] for start, stop in ranges]).long()
        everything = numbered(sum(map(len, self.files)))
        for batch in rows.split(5):
            yield everything[batch]


def streamed(
    batch: int = 8, micro: int = 2, rank: int = 0, world: int = 1, seed: int = 3, files: Sequence[int] = FILES
) -> StreamFeed:
    return StreamFeed(np.array(files), Shelf(files), batch, micro, 2 * micro, seed, rank, world)


def of_chunk(steps: list[Step], chunk: int) -> list[int]:
    """The rows of a micro-batch in step after step."""
    return [row for step in steps for number, rows in step if number == chunk for row in rows]


@pytest.mark.parametrize("files", [FILES, (97,), (50, 47), (9, 2)])
@pytest.mark.parametrize(("batch", "micro"), [(8, 2), (10, 2), (6, 2), (4, 4)])
def test_a_stream_has_each_row_once_an_epoch(files: Sequence[int], batch: int, micro: int) -> None:
    total, chunks, epochs = sum(files), batch // micro, 3
    whole = taken(streamed(batch, micro, files=files), 0, -(-epochs * total // batch) + 3)
    seen: list[list[int]] = [[] for _ in range(epochs)]
    for chunk in range(chunks):
        share = total * (chunk + 1) // chunks - total * chunk // chunks
        rows = of_chunk(whole, chunk)
        for epoch in range(epochs):
            seen[epoch] += rows[epoch * share : (epoch + 1) * share]
    assert [sorted(rows) for rows in seen] == [list(range(total))] * epochs


@given(
    worlds=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=5),
    in_memory=st.booleans(),
)
def test_no_row_is_missing_or_double_if_the_ranks_change(
    worlds: list[tuple[int, int]], in_memory: bool
) -> None:
    """worlds: (number of ranks, steps) one after another, as an elastic run resumes."""

    def made(rank: int, world: int) -> Feed:
        return feed(97, 10, 2, rank, world) if in_memory else streamed(10, 2, rank, world)

    step, found = 0, []
    for world, steps in worlds:
        ranks = [taken(made(rank, world), step, steps) for rank in range(world)]
        found += [sorted(chain.from_iterable(of_ranks)) for of_ranks in zip(*ranks, strict=True)]
        step += steps
    assert found == taken(made(0, 1), 0, step)


@pytest.mark.parametrize("first", [1, 3, 12, 13, 29, 61])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_a_streamed_start_in_the_middle_is_the_same_as_skipping(first: int, rank: int, world: int) -> None:
    whole = taken(streamed(rank=rank, world=world), 0, first + 9)
    assert taken(streamed(rank=rank, world=world), first, 9) == whole[first:]


def test_a_streamed_start_reads_from_its_window_on() -> None:
    source, shelf = streamed(), Shelf()
    source.read = shelf
    taken(source, 10, 1)  # 20 of the 24 rows of each micro-batch, whose last window of 6 starts at row 20
    order, ((start, stop),) = shelf.asked[0]
    assert stop - start == 97 - 4 * 20
    assert sorted(order) == sorted([*range(6), *range(6)])


def test_ranks_read_each_row_of_an_epoch_once() -> None:
    read = []
    for rank in range(3):
        source, shelf = streamed(rank=rank, world=3), Shelf()
        source.read = shelf
        taken(source, 0, 1)
        order, ranges = shelf.asked[0]
        ring = torch.cat([shelf.files[i] for i in order])
        read += [row for start, stop in ranges for row in ring[start:stop].tolist()]
    assert sorted(read) == list(range(97))


def test_windows_mix_two_batches_or_more_and_change_with_the_epoch() -> None:
    source, shelf = streamed(batch=8, micro=8, files=(96,)), Shelf((96,))
    source.read = shelf
    rows = stream(taken(source, 0, 96))  # 8 epochs
    mixed, orders = [], set()
    for epoch in range(8):
        order, ((start, stop),) = shelf.asked[epoch]
        orders.add((tuple(order), start))
        read = torch.cat([shelf.files[i] for i in order])[start:stop].tolist()
        for first in range(0, 96, 16):
            window = rows[epoch * 96 + first : epoch * 96 + first + 16]
            assert sorted(window) == sorted(read[first : first + 16])
            mixed.append(len(set(window[:8]) - set(read[first : first + 8])))
    assert len(orders) == 8
    assert sum(mixed) / len(mixed) == pytest.approx(4, abs=0.7)  # half of a batch of 8 out of 16


def test_the_streamed_order_is_of_the_seed() -> None:
    assert taken(streamed(), 0, 20) == taken(streamed(), 0, 20)
    assert taken(streamed(), 0, 20) != taken(streamed(seed=4), 0, 20)


def test_streamed_images_keep_their_parses() -> None:
    for step in islice(streamed().steps(0), 30):
        for _, batch in step:
            assert batch.images.flatten().tolist() == batch.z.what.flatten().tolist()


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
