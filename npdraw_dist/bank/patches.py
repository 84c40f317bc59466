"""Cuts patches from training images, and draws a uniform sample from a stream of patches.

Shapes: N images, C channels, h x w canvas, L places, P patch side, M patches kept, D = C * P * P.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from npdraw_dist.core.grid import Grid

BLOCK = 256  # images processed at once, so that intermediate results stay in the processor's cache


def extract(images: NDArray[np.uint8], grid: Grid, min_energy: float) -> NDArray[np.uint8]:
    """Cuts the patches whose ink has a mean square of at least `min_energy` from `images` (N, C, h, w).

    Ink is |pixel - background|, in [0, 1]; pixels beyond the edge are background. Returns pixels (M, D),
    image after image.
    """
    assert images.shape[2:] == (grid.height, grid.width), f"images {images.shape} on {grid}"
    ink = grid.ink(images)
    blocks = [ink[start : start + BLOCK] for start in range(0, max(len(ink), 1), BLOCK)]
    found = np.concatenate([_extract(block, grid, min_energy) for block in blocks])
    return grid.ink(found)


def _extract(ink: NDArray[np.uint8], grid: Grid, min_energy: float) -> NDArray[np.uint8]:
    padded = grid.of_ink.pad(torch.from_numpy(ink))
    squares = padded.double().square().sum(1, keepdim=True)  # float64, so that sums are exact
    total = F.avg_pool2d(squares, grid.patch, grid.stride, divisor_override=1)[:, 0]  # (N, rows, columns)
    enough = total / (255.0**2 * ink.shape[1] * grid.patch**2) >= min_energy
    windows = padded.unfold(2, grid.patch, grid.stride).unfold(3, grid.patch, grid.stride)
    return windows.permute(0, 2, 3, 1, 4, 5)[enough].flatten(1).numpy()


ALL = 2**64 - 1  # the largest key; as a limit, it includes all patches
OVERSAMPLED = 1.5  # candidates that `limit` allows for each patch of the sample, since blocks differ


@dataclass(frozen=True)
class Drawn:
    """A block's patches (m, D) with keys (m,) in a range. seen: size of the block, or 0 if counted before."""

    keys: NDArray[np.uint64]
    patches: NDArray[np.uint8]
    seen: int


def draw(patches: NDArray[np.uint8], block: int, seed: int, above: int = -1, limit: int = ALL) -> Drawn:
    """Draws the `patches` (n, D) whose key, a hash of seed, block and position, is in (above, limit]."""
    # These arrays have one entry each, because NumPy warns if a scalar overflows.
    words = np.array([[block % 2**64], [seed % 2**64]], np.uint64)
    start = splitmix64(words[0] + splitmix64(words[1]))
    keys = splitmix64(np.arange(len(patches), dtype=np.uint64) + start)
    chosen = keys <= np.uint64(limit)
    if above >= 0:
        chosen &= keys > np.uint64(above)
    return Drawn(keys[chosen], patches[chosen], len(patches))


class Reservoir:
    """Keeps the `capacity` patches of a stream with the smallest keys, which are a uniform sample.

    The order of the blocks does not change the sample. `seen` counts all patches of the stream.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.seen = capacity, 0
        self._limit = np.uint64(ALL)
        self._kept: list[tuple[NDArray[np.uint64], NDArray[np.uint8]]] = []

    def add(self, drawn: Drawn) -> None:
        """Adds patches of a block. No patch may be added twice."""
        self.seen += drawn.seen
        chosen = drawn.keys <= self._limit
        self._kept.append((drawn.keys[chosen], drawn.patches[chosen]))
        if sum(len(keys) for keys, _ in self._kept) > 2 * self.capacity:
            self._shrink()

    def limit(self, share: float) -> int:
        """Estimates a key below which more than `capacity` patches of the whole stream lie.

        share: the fraction of the stream that has been added.
        """
        count, expected = OVERSAMPLED * self.capacity + 5 * math.sqrt(self.capacity), self.seen / share
        return ALL if count >= expected else int(count / expected * ALL)

    def is_exact(self, limit: int) -> bool:
        """Whether the sample stays the same if all patches with keys above `limit` are left out."""
        return (
            limit >= ALL or sum((keys <= np.uint64(limit)).sum() for keys, _ in self._kept) >= self.capacity
        )

    def result(self) -> NDArray[np.uint8]:
        """The sample (min(capacity, seen), D), sorted by key and so shuffled; (0, 0) if nothing was added."""
        if not self._kept:
            return np.empty((0, 0), np.uint8)
        self._shrink()
        keys, patches = self._kept[0]
        return patches[np.argsort(keys)]

    def _shrink(self) -> None:
        keys = np.concatenate([keys for keys, _ in self._kept])
        patches = np.concatenate([patches for _, patches in self._kept])
        if len(keys) > self.capacity:
            kept = np.argpartition(keys, self.capacity - 1)[: self.capacity]
            keys, patches = keys[kept], patches[kept]
            self._limit = keys.max()
        self._kept = [(keys, patches)]


def splitmix64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 hash of each word (Steele, Lea & Flood 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def unique_rows(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Ascending indices of the first of each group of equal rows (n, D), compared by 64-bit hashes."""
    count, dimensions = patches.shape
    words = np.pad(patches, ((0, 0), (0, -dimensions % 8))).view(np.uint64)
    hashes = np.zeros(count, np.uint64)
    for column in words.T:
        hashes = splitmix64(hashes ^ column)
    return np.sort(np.unique(hashes, return_index=True)[1])
