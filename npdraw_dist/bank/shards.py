"""A shard of patches, with the passes over these patches that clustering needs.

Pixels are in 0..255, so all sums are exact integers, and the sums of several shards add up, bit for bit, to
the sum over all patches.
Shapes: n patches of this shard, K centroids, m candidates, D = C * P * P pixels of a patch.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.patches import unique_rows
from npdraw_dist.bank.search import Assigner, Searcher, one_blas_thread

# Largest number of patches in a chunk. 255 * 16,384 < 2^24, so the float32 sums of a chunk are exact.
CHUNK = 16_384


class Sums(NamedTuple):
    """Sums (K, D) and counts (K,) of the patches in each cluster of a shard.

    farthest: the patch (1, D) uint8 that is farthest from its centroid, at squared distance `distance`. In an
    empty shard `farthest` is (0, D) and `distance` is -1.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]
    farthest: NDArray[np.uint8]
    distance: float


class Candidates(NamedTuple):
    """For each centroid, the m nearest different patches of a shard, nearest first.

    distances: (K, m), squared. rows: (K, m), indices of the patches, counted over all shards.
    patches: (K, m, D).
    """

    distances: NDArray[np.float64]
    rows: NDArray[np.int64]
    patches: NDArray[np.uint8]


class PatchShard:
    """A shard's patches (n, D) uint8. start: number of patches in the shards before. gpu: see `Searcher`."""

    def __init__(self, patches: NDArray[np.uint8], start: int, gpu: bool | None) -> None:
        assert patches.dtype == np.uint8, f"patches are uint8, not {patches.dtype}"
        assert patches.ndim == 2, f"patches are (n, D), not {patches.shape}"
        self.patches, self.start, self._gpu = patches, start, gpu
        self._cpu_started = time.process_time()
        threads = torch.get_num_threads()  # as many as this process may use
        self._chunk_rows = max(1, min(CHUNK, -(-len(patches) // threads)))
        # Each thread computes its own products, since threads that share a product wait for each other.
        self._threads = ThreadPoolExecutor(threads)

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self._gpu)

    def size(self) -> tuple[int, int]:
        """Returns n and the sum of all squared pixels."""
        squares = self._map(lambda start: int(np.square(self._chunk(start)).sum(dtype=np.float64)))
        return len(self.patches), sum(squares)

    def core_seconds(self) -> float:
        """CPU seconds that this process has used since the shard was created."""
        return time.process_time() - self._cpu_started

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The patches at `indices`, which count over all shards; indices of other shards are ignored."""
        rows = indices - self.start
        return self.patches[rows[(rows >= 0) & (rows < len(self.patches))]]

    def distinct(self, limit: int) -> NDArray[np.uint8]:
        """Up to `limit` different patches of this shard, (at most `limit`, D)."""
        found = self.patches[:0]
        for start in range(0, len(self.patches), CHUNK):
            found = np.concatenate([found, self.patches[start : start + CHUNK]])
            found = found[unique_rows(found)]
            if len(found) >= limit:
                break
        return found[:limit]

    def step(self, centroids: NDArray[np.float32]) -> Sums:
        """Assigns the patches to `quantized` centroids (K, D) and sums each cluster."""
        k, assign = len(centroids), Assigner(centroids, self._searcher.index(centroids))

        def step_chunk(start: int) -> tuple[NDArray[np.float32], NDArray[np.int64], int, float]:
            chunk = self._chunk(start)
            nearest, worst, distance = assign(chunk)
            on_gpu = self._searcher.gpu and torch.cuda.is_available()
            summed = sums_on(torch.device("cuda"), chunk, nearest, k) if on_gpu else sums(chunk, nearest, k)
            return summed, np.bincount(nearest, minlength=k), start + worst, distance

        total, counts = np.zeros(centroids.shape), np.zeros(k, np.int64)
        farthest, distance = 0, -1.0
        for chunk_sums, chunk_counts, worst, squared in self._map(step_chunk):
            total += chunk_sums
            counts += chunk_counts
            if squared > distance:
                farthest, distance = worst, squared
        return Sums(total, counts, self.patches[farthest : farthest + 1], distance)

    def nearest(self, centroids: NDArray[np.float32], count: int) -> Candidates:
        """The `count` different patches nearest to each of `centroids` (K, D), or all if there are fewer."""

        def nearest_in_chunk(start: int) -> NDArray[np.int64]:
            chunk = self._chunk(start)
            first = unique_rows(self.patches[start : start + len(chunk)])
            index = self._searcher.index(chunk[first])
            return first[index.search(centroids, min(count, len(first)))[1]] + start

        rows = np.empty((len(centroids), 0), np.int64)
        for found in self._map(nearest_in_chunk):
            rows = self._closest(centroids, np.concatenate([rows, found], 1), count)
        return Candidates(self._distances(centroids, rows), rows + self.start, self.patches[rows])

    def _map(self, function: Callable[[int], Any]) -> Iterator[Any]:
        """Yields `function(first row)` of each chunk in order, computed in threads unless a GPU searches."""
        starts = range(0, len(self.patches), self._chunk_rows)
        if self._searcher.gpu:
            yield from map(function, starts)
            return
        with one_blas_thread():
            yield from self._threads.map(function, starts)

    def _chunk(self, start: int) -> NDArray[np.float32]:
        return self.patches[start : start + self._chunk_rows].astype(np.float32)

    def _distances(self, centroids: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        apart = self.patches[rows] - centroids[:, None].astype(np.float64)
        return np.einsum("kmd,kmd->km", apart, apart)

    def _closest(
        self, centroids: NDArray[np.float32], rows: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """The `count` nearest of `rows` (K, m), ties by index; only the first of equal patches is kept."""
        order = np.lexsort((rows, self._distances(centroids, rows)), axis=1)
        ordered = np.take_along_axis(rows, order, 1)
        return np.stack([row[unique_rows(self.patches[row])][:count] for row in ordered])


def sums(chunk: NDArray[np.float32], nearest: NDArray[np.int64], k: int) -> NDArray[np.float32]:
    """Sums the rows of `chunk` (n, D) in each cluster on the CPU, (K, D). nearest: (n,), the clusters."""
    from scipy.sparse import csc_matrix  # a slow import

    ones, ends = np.ones(len(chunk), np.float32), np.arange(len(chunk) + 1)
    return csc_matrix((ones, nearest, ends), (k, len(chunk))) @ chunk


def sums_on(
    device: torch.device, chunk: NDArray[np.float32], nearest: NDArray[np.int64], k: int
) -> NDArray[np.float32]:
    """Computes `sums` on a device. It may add in any order, since sums of integers are exact."""
    zeros = torch.zeros(k, chunk.shape[1], device=device)
    rows, index = torch.from_numpy(chunk).to(device), torch.from_numpy(nearest).to(device)
    return zeros.index_add_(0, index, rows).cpu().numpy()


def arguments_of(parts: Sequence[NDArray[np.uint8]], gpu: bool | None) -> list[tuple[Any, ...]]:
    """The arguments of one `PatchShard` for each of `parts`, consecutive (n, D) uint8 arrays."""
    starts = accumulate(map(len, parts), initial=0)
    return [(part, start, gpu) for part, start in zip(parts, starts, strict=False)]


class Shards(Protocol):
    """All shards of a clustering, in this process or in others."""

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Calls `method(*arguments)` of each shard; returns the results in the order of the shards."""
        ...

    def close(self) -> None:
        """Frees the shards."""


class LocalShards:
    """One shard in this process for each of `parts`, consecutive (n, D) uint8 arrays."""

    def __init__(self, parts: Sequence[NDArray[np.uint8]], gpu: bool | None) -> None:
        self._shards = [PatchShard(*each) for each in arguments_of(parts, gpu)]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(shard, method)(*arguments) for shard in self._shards]

    def close(self) -> None:
        """Does nothing, since no other process holds a shard."""
