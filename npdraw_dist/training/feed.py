"""Feeds each rank its rows of the global batch of each step.

The split does not change the image or the noise of a row, so the number of workers may change at any step.
Shapes: B rows in a step, N images in total.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.core.noise import Ahead, RowNoise
from npdraw_dist.core.parts import Batch
from npdraw_dist.system.process import background_threads

Item = TypeVar("Item")
Rows = tuple[int, Batch]  # consecutive rows of a global batch, and the place of the first


class Feed(Protocol):
    """Endless training data from a given step on."""

    def steps(self, first: int) -> Iterator[Rows]:
        """Yields this rank's rows of each step from `first` on."""


@dataclass(frozen=True)
class Share:
    """The rows of the global batch that a rank takes. seed: seeds the order of the data."""

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def rows(self) -> range:
        """The rows of this rank; at least one if the batch has at least as many rows as there are ranks."""
        first, end = (rank * self.batch_size // self.world_size for rank in (self.rank, self.rank + 1))
        return range(first, end)


def noise_seed(seed: int, *path: int) -> int:
    """Hashes `seed` and `path` (such as a step's number) to a seed of 63 bits for random draws."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def noise_of_rows(
    seed: int, first: int, count: int, device: torch.device, ahead: Ahead | None = None
) -> RowNoise:
    """The noise of rows [first, first + count) of a step's global batch, or of the validation images."""
    return RowNoise(seed, torch.arange(first, first + count, device=device), ahead)


class MemoryFeed:
    """Feeds data from memory, shuffled by (seed, epoch) in each epoch. A batch may span two epochs."""

    def __init__(self, data: Batch, share: Share) -> None:
        self.data, self.share = data, share
        self._order: dict[int, np.ndarray] = {}

    def steps(self, first: int) -> Iterator[Rows]:
        for step in itertools.count(first):
            yield self.share.rows.start, self.data[self._places(step)]

    def _places(self, step: int) -> torch.Tensor:
        """The indices into the data of this rank's rows of a step."""
        positions = step * self.share.batch_size + np.arange(self.share.rows.start, self.share.rows.stop)
        epochs, offsets = np.divmod(positions, len(self.data))
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._epoch(int(epoch))[offsets[epochs == epoch]]
        return torch.from_numpy(rows)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._order:
            self._order = {e: order for e, order in self._order.items() if e >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.share.seed, epoch]).permutation(len(self.data))
        return self._order[epoch]


RING = 2**31  # part of the seed of an epoch's order of groups; no seed of a window contains it
LANE = 8  # rows of a lane (`StreamFeed`) in a step; few, since two ranks that share a lane both read it

# read(order, ranges) yields rows [start, stop) of each range in turn, in batches of any sizes. Rows are
# numbered along the groups in `order`.
Range = tuple[int, int]
Read = Callable[[NDArray[np.int64], Sequence[Range]], Iterator[Batch]]


class StreamFeed:
    """Training data that is read in groups of rows and shuffled within windows. No epoch is kept in memory.

    The rows of a batch form lanes of at most 8 rows, and a rank reads the lanes that contain its rows. The
    groups of an epoch, in an order drawn from (seed, epoch), form a ring of N rows that starts at a random
    row. The ring is cut into windows, and each window into one piece for each lane, shuffled by (seed, lane,
    epoch, window). So the rows of a lane do not depend on the number of ranks. In an epoch, each row is used
    once, and each lane has N divided by the number of lanes, rounded to whole rows.

    rows: number of images in each group. window: minimum rows of a window; with fewer than twice as many rows
    in total, there is one window. lane: rows of a lane in each step; if this does not divide the batch size,
    the greatest common divisor of both is used.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        read: Read,
        share: Share,
        window: int,
        lane: int = LANE,
    ) -> None:
        assert window >= 2 * share.batch_size, "a smaller window mixes too little"
        self.groups, self.read, self.share = rows, read, share
        self.lane = math.gcd(share.batch_size, lane)
        self.lanes = range(share.rows.start // self.lane, -(-share.rows.stop // self.lane))
        total, count = int(rows.sum()), share.batch_size // self.lane
        assert total >= count, "each lane needs a row"
        shares = np.diff(np.arange(count + 1) * total // count)  # rows of each lane in an epoch
        self.windows = max(total // window, 1)
        # (windows + 1, lanes): number of rows of each lane that come before each window
        self._before = np.arange(self.windows + 1)[:, None] * shares // self.windows
        sizes = np.diff(self._before, axis=0)
        ends = sizes.cumsum().reshape(sizes.shape)
        self._starts, self._ends = ends - sizes, ends  # (windows, lanes): each piece's limits on the ring

    def steps(self, first: int) -> Iterator[Rows]:
        # During training on a window, the next one is ready and the one after that is being read.
        windows = prefetched(self._windows(first * self.lane), 1)
        ready = {lane: _Rows() for lane in self.lanes}
        start, own = self.lanes.start * self.lane, self.share.rows
        try:
            while True:
                while any(rows.count < self.lane for rows in ready.values()):
                    for lane, piece in next(windows):
                        ready[lane].add(piece)
                batch = Batch.cat([rows.take(self.lane) for rows in ready.values()])
                yield own.start, batch[own.start - start : own.stop - start]
        finally:
            windows.close()

    def _windows(self, position: int) -> Iterator[list[tuple[int, Batch]]]:
        """Yields each window as pairs (lane, shuffled piece), starting after `position` rows of each lane."""
        first = {lane: self._locate(lane, position) for lane in self.lanes}
        epoch, window, _ = min(first.values())
        while True:
            todo = [
                (number, lane)
                for number in range(window, self.windows)
                for lane in self.lanes
                if (epoch, number) >= first[lane][:2]
            ]
            rows = _Rows(self._read(epoch, todo))
            for number, mine in itertools.groupby(todo, key=itemgetter(0)):
                pieces = []
                for _, lane in mine:
                    size = int(self._ends[number, lane] - self._starts[number, lane])
                    order = np.random.default_rng([self.share.seed, lane, epoch, number]).permutation(size)
                    skip = first[lane][2] if first[lane][:2] == (epoch, number) else 0
                    pieces.append((lane, rows.take(size)[torch.from_numpy(order[skip:])]))
                yield pieces
            epoch, window = epoch + 1, 0

    def _locate(self, lane: int, position: int) -> tuple[int, int, int]:
        """The epoch, window and row of the window's piece at which a lane resumes after `position` rows."""
        before = self._before[:, lane]
        epoch, offset = divmod(position, int(before[-1]))
        window = int(np.searchsorted(before, offset, "right")) - 1
        return epoch, window, offset - int(before[window])

    def _read(self, epoch: int, pieces: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Yields the rows of each piece (window, lane) in turn, in batches of any sizes."""
        generator = np.random.default_rng([self.share.seed, epoch, RING])
        groups = generator.permutation(len(self.groups))
        turn = int(generator.integers(int(self.groups.sum())))
        ranges: list[Range] = []
        for piece in pieces:
            start, stop = turn + int(self._starts[piece]), turn + int(self._ends[piece])
            if ranges and ranges[-1][1] == start:
                start = ranges.pop()[0]
            ranges.append((start, stop))
        # The order lists the groups twice, since a range may pass the end of the ring.
        return self.read(np.tile(groups, 2), ranges)


class _Rows:
    """A queue of rows. Added batches fill it; if they are too few, it reads more from `batches`."""

    def __init__(self, batches: Iterable[Batch] = ()) -> None:
        self.batches = iter(batches)
        self.queue: list[Batch] = []

    @property
    def count(self) -> int:
        """The number of rows in the queue."""
        return sum(map(len, self.queue))

    def add(self, batch: Batch) -> None:
        self.queue.append(batch)

    def take(self, count: int) -> Batch:
        """Removes and returns the next `count` rows."""
        while self.count < count:
            batch = next(self.batches, None)
            assert batch is not None, "the files hold fewer rows than their metadata says"
            self.queue.append(batch)
        whole = self.queue[0] if len(self.queue) == 1 else Batch.cat(self.queue)
        self.queue = [whole[count:]]
        return whole[:count]


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """Yields `items`, which a thread computes up to `depth` items ahead. Raises errors of the thread.

    The thread ends when the generator ends.
    """
    end: Any = object()
    with background_threads(1, "prefetch") as thread:
        ahead = deque(thread.submit(next, items, end) for _ in range(depth + 1))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)  # this waits for a read that has begun
            if hasattr(items, "close"):
                items.close()
