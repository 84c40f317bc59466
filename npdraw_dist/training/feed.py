"""The training data of each rank: every step's global batch is shared among the ranks by rows.

A rank cuts its rows into micro-batches. Neither cut changes images or noise of a row, and the number of
workers may change at any step.
Shapes: B rows a step, N images in all.
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

from npdraw_dist.core.parts import Batch
from npdraw_dist.core.process import background_threads

Item = TypeVar("Item")


class Feed(Protocol):
    """Endless training data from a given step on."""

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        """(first row in the batch, micro-batch) of this rank in each step, from step `first` on."""


@dataclass(frozen=True)
class Share:
    """The share of a rank in each step: rows of the global batch, in micro-batches. seed: of the order."""

    batch_size: int
    micro_batch: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def rows(self) -> range:
        """At least one, if there are no more ranks than rows."""
        first, end = (rank * self.batch_size // self.world_size for rank in (self.rank, self.rank + 1))
        return range(first, end)

    @property
    def micro_batches(self) -> list[tuple[int, int]]:
        """(first row, end) of each."""
        size, end = self.micro_batch, self.rows.stop
        return [(first, min(first + size, end)) for first in self.rows[::size]]


def noise_seed(seed: int, *path: int) -> int:
    """The seed of all that is drawn at one point, such as a step: 63 bits, well mixed."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class MemoryFeed:
    """All training data in memory, shuffled in each epoch by (seed, epoch). A batch may span two epochs."""

    def __init__(self, data: Batch, share: Share) -> None:
        self.data, self.share = data, share
        self._order: dict[int, np.ndarray] = {}

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        for step in itertools.count(first):
            parts = self.share.micro_batches
            yield [(start, self.data[self._places(step, start, stop)]) for start, stop in parts]

    def _places(self, step: int, start: int, stop: int) -> torch.Tensor:
        """Where rows [start, stop) of a step's batch are in the data."""
        positions = step * self.share.batch_size + np.arange(start, stop)
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


RING = 2**31  # separates the seeds of an epoch's groups from those of its windows
LANE = 8  # few: ranks that share a lane both read it

# read(order, ranges): rows [start, stop) of each range, one after another, in any batches. Rows are counted
# over the groups `order`.
Range = tuple[int, int]
Read = Callable[[NDArray[np.int64], Sequence[Range]], Iterator[Batch]]


class StreamFeed:
    """Training data read in groups of rows, shuffled within windows; nothing is kept from epoch to epoch.

    A batch consists of lanes of 8 rows or less. The groups of an epoch, in an order drawn from (seed, epoch),
    are one ring of N rows that starts at a drawn row. It is cut into windows, and each window into one piece
    for each lane, shuffled by (seed, lane, epoch, window). So the rows of a lane do not depend on the ranks;
    all ranks take equal steps, and together see each row once an epoch (a lane has its share, rounded).

    rows: images of each group. window: least rows of a window (all of them, if N is less than two). lane: its
    rows in each step, if the batch is a multiple.
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
        # (window + 1, lane): how many rows of its share are before each window
        self._before = np.arange(self.windows + 1)[:, None] * shares // self.windows
        sizes = np.diff(self._before, axis=0)
        ends = sizes.cumsum().reshape(sizes.shape)
        self._starts, self._ends = ends - sizes, ends  # (window, lane): places on the ring

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        # While one window is trained on, the next one is ready and the one after it is read.
        windows = prefetched(self._windows(first * self.lane), 1)
        held = {lane: _Rows() for lane in self.lanes}
        start = self.lanes.start * self.lane
        try:
            while True:
                while any(rows.count < self.lane for rows in held.values()):
                    for lane, piece in next(windows):
                        held[lane].add(piece)
                batch = Batch.cat([rows.take(self.lane) for rows in held.values()])
                yield [(first, batch[first - start : end - start]) for first, end in self.share.micro_batches]
        finally:
            windows.close()

    def _windows(self, position: int) -> Iterator[list[tuple[int, Batch]]]:
        """(lane, shuffled piece) of window after window, after `position` rows of each lane."""
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
        """Epoch, window and row of its piece at which a lane that has had `position` rows goes on."""
        before = self._before[:, lane]
        epoch, offset = divmod(position, int(before[-1]))
        window = int(np.searchsorted(before, offset, "right")) - 1
        return epoch, window, offset - int(before[window])

    def _read(self, epoch: int, pieces: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """The rows of (window, lane) after (window, lane), in reading order."""
        generator = np.random.default_rng([self.share.seed, epoch, RING])
        groups = generator.permutation(len(self.groups))
        turn = int(generator.integers(int(self.groups.sum())))
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
    with background_threads(1, "prefetch") as thread:
        ahead = deque(thread.submit(next, items, end) for _ in range(depth + 1))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)  # a read that goes on is waited for
            if hasattr(items, "close"):
                items.close()
