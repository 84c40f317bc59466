"""The training data of each rank: global batches are cut into micro-batches, which the ranks share.

In memory, the images and the noise of a micro-batch do not depend on the number of workers, so two ranks
compute what one computes. In a stream, the images depend on that number.
B images a batch, N images in all.
"""

import queue
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

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
    """All training data in memory, shuffled in each epoch by (seed, epoch).

    Epochs follow each other without a gap: a batch may span two of them, and no batch is short.
    """

    def __init__(
        self, data: Batch, batch_size: int, micro_batch: int, seed: int, rank: int, world_size: int
    ) -> None:
        self.data, self.batch_size, self.micro_batch, self.seed = data, batch_size, micro_batch, seed
        self.chunks = my_chunks(batch_size, micro_batch, rank, world_size)
        self._order: dict[int, np.ndarray] = {}

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        step = first
        while True:
            yield [(chunk, self.data[self._rows(step, chunk)]) for chunk in self.chunks]
            step += 1

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


RING = 2**31  # separates the seeds of an epoch's files from those of its windows

# read(order, start, stop): rows [start, stop) of the files `order` one after another, in any batches.
Read = Callable[[Sequence[int], int, int], Iterator[Batch]]


class StreamFeed:
    """Training data read file by file, shuffled within a window; nothing is kept from epoch to epoch.

    The files of an epoch, in an order drawn from (seed, epoch), are one ring of N rows that starts at a
    drawn row. Each rank gets an arc of it in proportion to its micro-batches. So all ranks take equal
    steps for any number of files, and all ranks together see each row once an epoch (an arc is rounded,
    so ranks drift apart by less than a row an epoch). A rank cuts its arc into windows of `buffer` rows
    or more (one window if the arc is shorter), each shuffled by (seed, rank, epoch, window). Epochs
    follow each other without a gap: no batch is short.

    rows: images of each file. buffer: at least two global batches.
    """

    def __init__(
        self,
        rows: Sequence[int],
        read: Read,
        batch_size: int,
        micro_batch: int,
        buffer: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert buffer >= 2 * batch_size, "a smaller buffer mixes too little"
        self.rows, self.read, self.micro_batch = list(rows), read, micro_batch
        self.seed, self.rank = seed, rank
        self.chunks = my_chunks(batch_size, micro_batch, rank, world_size)
        total, chunks = sum(rows), batch_size // micro_batch
        assert total >= chunks, "each rank needs a row"
        before = sum(len(my_chunks(batch_size, micro_batch, other, world_size)) for other in range(rank))
        self._first = total * before // chunks
        self._arc = total * (before + len(self.chunks)) // chunks - self._first
        count = max(self._arc // buffer, 1)
        self._bounds = [self._arc * window // count for window in range(count + 1)]

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        # While one window is trained on, the next one is ready and the one after it is read.
        windows = prefetched(self._windows(first * len(self.chunks) * self.micro_batch), 1)
        rows = _Rows(windows)
        try:
            while True:
                yield [(chunk, rows.take(self.micro_batch)) for chunk in self.chunks]
        finally:
            windows.close()

    def _windows(self, position: int) -> Iterator[Batch]:
        """Shuffled windows from this rank's row `position` on, counted over all epochs."""
        epoch, offset = divmod(position, self._arc)
        while True:
            window = bisect_right(self._bounds, offset) - 1
            rows = _Rows(self._read_arc(epoch, self._bounds[window]))
            for number in range(window, len(self._bounds) - 1):
                start, stop = self._bounds[number : number + 2]
                order = np.random.default_rng([self.seed, self.rank, epoch, number]).permutation(stop - start)
                yield rows.take(stop - start)[torch.from_numpy(order[max(offset - start, 0) :])]
            epoch, offset = epoch + 1, 0

    def _read_arc(self, epoch: int, skip: int) -> Iterator[Batch]:
        """This rank's rows of an epoch in reading order, without the first `skip`."""
        generator = np.random.default_rng([self.seed, epoch, RING])
        files = generator.permutation(len(self.rows)).tolist()
        start = int(generator.integers(sum(self.rows))) + self._first
        # Each file twice, since the arc may pass the end of the ring.
        return self.read(files * 2, start + skip, start + self._arc)


class _Rows:
    """Takes any number of rows from batches of any sizes."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches
        self.held: list[Batch] = []

    def take(self, count: int) -> Batch:
        """The next `count` rows."""
        while sum(map(len, self.held)) < count:
            batch = next(self.batches, None)
            assert batch is not None, "the files hold fewer rows than their metadata says"
            self.held.append(batch)
        whole = self.held[0] if len(self.held) == 1 else Batch.cat(self.held)
        self.held = [whole[count:]]
        return whole[:count]


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """`items`, of which a thread makes up to `depth` ahead. Its error is raised here.

    The thread ends with the generator.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                return made.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        stop.set()
        thread.join(timeout=10)  # it may still be reading
