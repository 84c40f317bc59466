"""What each rank trains on: global batches cut into micro-batches, dealt out to ranks.

A micro-batch has the same images and the same noise whatever the number of workers is, so that
two ranks compute what one computes. B images a batch, N images in all.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from npdraw_dist.core.parts import Batch


class Feed(Protocol):
    """Endless training data from a given position on."""

    def steps(self, first: int) -> Iterator[list[tuple[int, Batch]]]:
        """From step `first` on: this rank's (index in the batch, micro-batch) of each step."""


def my_chunks(batch_size: int, micro_batch: int, rank: int, world_size: int) -> range:
    """The indices of the micro-batches of `rank`; every rank has at least one."""
    return range(rank, batch_size // micro_batch, world_size)


def noise_seed(seed: int, step: int, chunk: int) -> int:
    """The seed of everything drawn in one micro-batch: 63 bits, well mixed."""
    return int(np.random.SeedSequence([seed, step, chunk]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class MemoryFeed:
    """All training data in memory, shuffled anew each epoch by (seed, epoch).

    Epochs follow each other without a gap, so that a batch may span two and none is cut short.
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
        places = np.arange(start, start + self.micro_batch)
        epochs, offsets = np.divmod(places, len(self.data))
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._epoch(int(epoch))[offsets[epochs == epoch]]
        return torch.from_numpy(rows)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._order:
            self._order = {e: order for e, order in self._order.items() if e >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.data))
        return self._order[epoch]
