"""The training data of each rank: global batches are cut into micro-batches, which the ranks share.

Images and noise of a micro-batch do not depend on the number of workers, which may change at any step.
Shapes: C micro-batches a step, N images in all.
"""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.core.parts import Batch

Item = TypeVar("Item")


class Feed(Protocol):
    """Endless training data from a given step on."""

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        """(index in the batch, micro-batch) of this rank in each step, from step `first` on."""


def my_chunks(batch_size: int, micro_batch: int, rank: int, world_size: int) -> range:
    """The indices of the micro-batches of `rank`; every rank has at least one."""
    return range(rank, batch_size // micro_batch, world_size)


def noise_seed(seed: int, *path: int) -> int:
    """The seed of all that is drawn at one point, such as (step, micro-batch): 63 bits, well mixed."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class MemoryFeed:
    """All training data in memory, shuffled in each epoch by (seed, epoch). A batch may span two epochs."""

    def __init__(
        self, data: Batch, batch_size: int, micro_batch: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.data, self.batch_size, self.micro_batch, self.seed = data, batch_size, micro_batch, seed
        self.chunks = my_chunks(batch_size, micro_batch, rank, world_size)
        self._order: dict[int, np.ndarray] = {}

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        for step in itertools.count(first):
            yield [(chunk, self.data[self._rows(step, chunk)]) for chunk in self.chunks]

    def _rows(self, step: int, chunk: int) -> torch.Tensor:
        start = step * self.batch_size + chunk * self.micro_batch
        positions = np.arange(start, start + self.micro_batch)
        epochs, offsets = np.divmod(positions, len(self.data))
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._epoch(int(epoch))[offsets[epochs == epoch]]
        return torch.from_numpy(rows)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._order:
            self._order = {e: order for e, order in self._order.items() if e >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
        return self._order[epoch]


RING = 2**31  # separates the seeds of an epoch's groups from those of its windows

# read(order, ranges): rows [start, stop) of each range, one after another, in any batches. Rows are counted
# over the groups `order`.
Range = tuple[int, int]
Read = Callable[[NDArray[np.int64], Sequence[Range]], Iterator[Batch]]


class StreamFeed:
    """Training data read in groups of rows, shuffled within windows; nothing is kept from epoch to epoch.

    The groups of an epoch, in an order drawn from (seed, epoch), are one ring of N rows that starts at a
    drawn row. It is cut into windows, and each window into one piece for each micro-batch c of a step,
    shuffled by (seed, c, epoch, window). So the images of a micro-batch do not depend on the ranks; all ranks
    take equal steps, and together see each row once an epoch (a micro-batch has N / C rows, rounded).

    rows: images of each group. piece: least rows of a piece, at least two micro-batches (all of them, if N is
    less than two windows).
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        read: Read,
        batch_size: int,
        micro_batch: int,
        piece: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert piece >= 2 * micro_batch, "a smaller piece mixes too little"
        self.rows, self.read, self.micro_batch, self.seed = rows, read, micro_batch, seed
        self.chunks = my_chunks(batch_size, micro_batch, rank, world_size)
        total, count = int(rows.sum()), batch_size // micro_batch
        assert total >= count, "each micro-batch needs a row"
        shares = np.diff(np.arange(count + 1) * total // count)  # rows of each micro-batch in an epoch
        self.windows = max(total // (piece * count), 1)
        # (window + 1, micro-batch): how many rows of its share are before each window
        self._before = np.arange(self.windows + 1)[:, None] * shares // self.windows
        sizes = np.diff(self._before, axis=0)
        ends = sizes.cumsum().reshape(sizes.shape)
        self._starts, self._ends = ends - sizes, ends  # (window, micro-batch): places on the ring

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        # While one window is trained on, the next one is ready and the one after it is read.
        windows = prefetched(self._windows(first * self.micro_batch), 1)
        held = {chunk: _Rows() for chunk in self.chunks}
        try:
            while True:
                while any(rows.count < self.micro_batch for rows in held.values()):
                    for chunk, piece in next(windows):
                        held[chunk].add(piece)
                yield [(chunk, rows.take(self.micro_batch)) for chunk, rows in held.items()]
        finally:
            windows.close()

    def _windows(self, position: int) -> Iterator[list[tuple[int, Batch]]]:
        """(micro-batch, shuffled piece) of window after window, after `position` rows of each micro-batch."""
        first = {chunk: self._locate(chunk, position) for chunk in self.chunks}
        epoch, window, _ = min(first.values())
        while True:
            todo = [
                (number, chunk)
                for number in range(window, self.windows)
                for chunk in self.chunks
                if (epoch, number) >= first[chunk][:2]
            ]
            rows = _Rows(self._read(epoch, todo))
            for number, mine in itertools.groupby(todo, key=itemgetter(0)):
                pieces = []
                for _, chunk in mine:
                    size = int(self._ends[number, chunk] - self._starts[number, chunk])
                    order = np.random.default_rng([self.seed, chunk, epoch, number]).permutation(size)
                    skip = first[chunk][2] if first[chunk][:2] == (epoch, number) else 0
                    pieces.append((chunk, rows.take(size)[torch.from_numpy(order[skip:])]))
                yield pieces
            epoch, window = epoch + 1, 0

    def _locate(self, chunk: int, position: int) -> tuple[int, int, int]:
        """Epoch, window and row of its piece at which a micro-batch that has had `position` rows goes on."""
        before = self._before[:, chunk]
        epoch, offset = divmod(position, int(before[-1]))
        window = int(np.searchsorted(before, offset, "right")) - 1
        return epoch, window, offset - int(before[window])

    def _read(self, epoch: int, pieces: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """The rows of (window, micro-batch) after (window, micro-batch), in reading order."""
        generator = np.random.default_rng([self.seed, epoch, RING])
        groups = generator.permutation(len(self.rows))
        turn = int(generator.integers(int(self.rows.sum())))
        ranges: list[Range] = []
        for piece in pieces:
            start, stop = turn + int(self._starts[piece]), turn + int(self._ends[piece])
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        # Each group twice, since a range may pass the end of the ring.
        return self.read(np.tile(groups, 2), ranges)


class _Rows:
    """Takes any number of rows from batches of any sizes: those that were added, and then `batches`."""

    def __init__(self, batches: Iterable[Batch] = ()) -> None:
        self.batches = iter(batches)
        self.held: list[Batch] = []

    @property
    def count(self) -> int:
        """The number of rows that are held."""
        return sum(map(len, self.held))

    def add(self, batch: Batch) -> None:
        self.held.append(batch)

    def take(self, count: int) -> Batch:
        """The next `count` rows."""
        while self.count < count:
            batch = next(self.batches, None)
            assert batch is not None, "the files hold fewer rows than their metadata says"
            self.held.append(batch)
        whole = self.held[0] if len(self.held) == 1 else Batch.cat(self.held)
        self.held = [whole[count:]]
        return whole[:count]


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """`items`, made by a thread up to `depth` ahead, which ends with the generator. Its error is raised."""
    end: Any = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = deque(thread.submit(next, items, end) for _ in range(depth + 1))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)  # a read that goes on is waited for
            if hasattr(items, "close"):
                items.close()
