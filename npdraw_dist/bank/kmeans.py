"""Clusters image patches by k-means, which gives the codebook of *what* (paper section 3.1).

The patches may be split into shards, which several processes cluster together with the same result. The
search starts with greedy k-means++ on a small sample, converges on a larger sample with over-relaxed steps,
and ends with plain iterations over all patches. `snap` then replaces each centroid by a real patch.
Shapes: M patches over all shards, n in a sample, K centroids, m candidates, D = C * P * P pixels of a patch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.bank.patches import unique_rows
from npdraw_dist.bank.search import quantized
from npdraw_dist.bank.shards import Candidates, LocalShards, Shards, Sums
from npdraw_dist.system.errors import UserError

ITERATIONS = 25  # largest number of iterations over all patches
SEED_PATCHES_PER_PART = 32
SAMPLE_PATCHES_PER_PART = 1024
SAMPLE_ITERATIONS = 100
SAMPLE_TOLERANCE = 2e-4
# Steps of 1.8 times the distance to the mean need fewer iterations and reach a lower objective.
SAMPLE_RELAXATION = 1.8
# Iterations over all patches stop if the objective falls by a smaller fraction than this.
TOLERANCE = 5e-4
FIRST_CANDIDATES = 8  # number of patches that each shard first offers for a centroid


@dataclass(frozen=True)
class Clustering:
    """A result of k-means.

    centroids: (K, D), pixels in [0, 1]. sizes: (K,), the number of patches nearest to each centroid.
    objective: mean squared distance of a patch to its centroid. history: the objective before each iteration
    and at the end.
    """

    centroids: NDArray[np.float32]
    objective: float
    sizes: NDArray[np.int64]
    history: list[float]


def kmeans(shards: Shards, k: int, seed: int) -> Clustering:
    """Clusters the patches. Their split into shards does not change the result.

    Raises UserError if there are fewer than `k` different patches.
    """
    total = sum(patches for patches, _ in shards.call("size"))
    rng = np.random.default_rng([seed, 0])
    size = min(total, SAMPLE_PATCHES_PER_PART * k)
    indices = np.sort(rng.choice(total, size, replace=False, shuffle=False))
    sample = np.concatenate(shards.call("take", indices))
    return lloyd(shards, _start(_with_variety(sample, shards, k), k, rng), ITERATIONS)


def lloyd(
    shards: Shards,
    start: NDArray[np.float32],
    iterations: int,
    relaxation: float = 1.0,
    tolerance: float = TOLERANCE,
) -> Clustering:
    """Runs Lloyd's algorithm from the centroids `start` (K, D), pixels in [0, 1].

    relaxation: length of a step, in units of the distance to the mean. tolerance: iterations stop when the
    objective falls by a smaller fraction than this.
    """
    patches, squares = map(sum, zip(*shards.call("size"), strict=True))
    centroids = quantized(start.astype(np.float64) * 255)
    history: list[float] = []
    while True:
        centroids, total = _assign(shards, centroids)
        exact = centroids.astype(np.float64)
        error = squares - 2 * (exact * total.sums).sum() + (total.counts * (exact**2).sum(1)).sum()
        history.append(max(float(error), 0.0) / patches / 255**2)
        converged = len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]
        if converged or len(history) > iterations:
            break
        means = total.sums / np.maximum(total.counts, 1)[:, None]
        moved = exact + relaxation * (means - exact)
        centroids = quantized(np.where(total.counts[:, None] > 0, moved, exact))
    return Clustering(centroids / np.float32(255), history[-1], total.counts, history)


def _assign(shards: Shards, centroids: NDArray[np.float32]) -> tuple[NDArray[np.float32], Sums]:
    """Assigns all patches. Moves each empty cluster in turn to the patch farthest from all centroids."""
    total = _step(shards, centroids)
    for _ in range(len(centroids)):
        empty = np.flatnonzero(total.counts == 0)
        if len(empty) == 0 or total.distance <= 0:
            break
        centroids = centroids.copy()
        centroids[empty[0]] = total.farthest[0]
        total = _step(shards, centroids)
    return centroids, total


def _step(shards: Shards, centroids: NDArray[np.float32]) -> Sums:
    parts: list[Sums] = shards.call("step", centroids)
    worst = max(parts, key=lambda part: part.distance)
    sums, counts = np.sum([part.sums for part in parts], 0), np.sum([part.counts for part in parts], 0)
    return Sums(sums, counts, worst.farthest, worst.distance)


def _with_variety(sample: NDArray[np.uint8], shards: Shards, k: int) -> NDArray[np.uint8]:
    """Returns `sample` if it has `k` different patches, otherwise `k` different patches from all shards."""
    if len(unique_rows(sample)) >= k:
        return sample
    found = np.concatenate(shards.call("distinct", k))
    found = found[unique_rows(found)]
    if len(found) < k:
        raise UserError(f"bank.size is {k}, but there are only {len(found)} different patches; lower it")
    return found[:k]


def _start(sample: NDArray[np.uint8], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Clusters `sample` (n, D) into centroids (K, D), pixels in [0, 1]."""
    few = sample[rng.permutation(len(sample))[: SEED_PATCHES_PER_PART * k]]
    seeds = plus_plus(few if len(unique_rows(few)) >= k else sample, k, rng).astype(np.float32)
    start, shards = seeds / np.float32(255), LocalShards([sample], gpu=False)
    return lloyd(shards, start, SAMPLE_ITERATIONS, SAMPLE_RELAXATION, SAMPLE_TOLERANCE).centroids


def plus_plus(patches: NDArray[np.uint8], k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Chooses `k` rows (K, D) of `patches` (n, D) by greedy k-means++ (Arthur & Vassilvitskii 2007).

    Each step takes the best of 2 + log k draws. `patches` must have at least `k` different rows.
    """
    draws = 2 + int(np.log(k))
    # All sums are exact. Above 2^24, float32 would round sums of similar bright patches to the same number.
    x: NDArray[Any] = patches.astype(np.float32 if 255**2 * patches.shape[1] < 2**24 else np.float64)
    squares = np.einsum("ij,ij->i", x, x)
    chosen = [int(rng.integers(len(x)))]
    nearest = _squared(x, squares, np.array(chosen))[:, 0]
    for _ in range(1, k):
        mass = np.cumsum(nearest, dtype=np.float64)
        drawn = np.searchsorted(mass, rng.random(draws) * mass[-1], side="right")
        closer = np.minimum(nearest[:, None], _squared(x, squares, drawn))
        best = int(closer.sum(0, dtype=np.float64).argmin())
        chosen.append(int(drawn[best]))
        nearest = closer[:, best]
    return patches[chosen]


def _squared(x: NDArray[Any], squares: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Squared distances (n, rows) of all n patches to the patches at the indices `rows`."""
    return squares[:, None] - 2 * (x @ x[rows].T) + squares[rows]


class Exemplars(NamedTuple):
    """K different patches (K, D) uint8; distances: (K,), squared, to the centroids, for pixels in [0, 1]."""

    patches: NDArray[np.uint8]
    distances: NDArray[np.float64]


def snap(centroids: NDArray[np.float32], shards: Shards) -> Exemplars:
    """Pairs each of `centroids` (K, D), pixels in [0, 1], with a different patch, closest pairs first.

    Each shard first sends a few patches near each centroid, and more only if centroids compete for them.
    """
    scaled = np.ascontiguousarray(centroids * 255, np.float32)
    count = min(FIRST_CANDIDATES, len(scaled))
    while True:
        parts: list[Candidates] = shards.call("nearest", scaled, count)
        found = _pair(*(np.concatenate(each, 1) for each in zip(*parts, strict=True)))
        if found is not None:
            return found
        assert count < len(scaled), "k-means found K different patches"
        count = min(2 * count, len(scaled))


def _pair(
    distances: NDArray[np.float64], rows: NDArray[np.int64], patches: NDArray[np.uint8]
) -> Exemplars | None:
    """Pairs centroids with candidates by rising distance, then index; None if a centroid gets none."""
    k, width = rows.shape
    chosen = np.full(k, -1)
    taken: set[bytes] = set()
    for flat in np.lexsort((rows.ravel(), distances.ravel())):
        centroid, candidate = divmod(int(flat), width)
        value = patches[centroid, candidate].tobytes()
        if chosen[centroid] < 0 and value not in taken:
            chosen[centroid] = candidate
            taken.add(value)
    if (chosen < 0).any():
        return None
    pick = np.arange(k), chosen
    return Exemplars(patches[pick], distances[pick] / 255**2)
