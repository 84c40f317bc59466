"""Replaces each centroid by its nearest real patch, so that a part is an exemplar (paper section 3.1).

Shapes: K centroids, m candidates, D = C * P * P pixels of a patch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.bank.kmeans import first_indices
from npdraw_dist.bank.shard import Candidates, Shards

FIRST_CANDIDATES = 8


class Exemplars(NamedTuple):
    """patches: (K, D) uint8, no two equal. distances: (K,) float64, squared, summed over pixels in [0, 1].

    indices: (K,) int64 into all patches.
    """

    patches: NDArray[np.uint8]
    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


def snap(centroids: NDArray[np.float32], shards: Shards) -> Exemplars:
    """Pairs `centroids` (K, D), pixels in [0, 1], with patches, the closest pair first.

    No two centroids get equal patches. There must be K different patches. Each shard sends its few best
    candidates, and more only if centroids compete for them.
    """
    starts = first_indices(shards.call("size"))
    scaled = np.ascontiguousarray(centroids * 255, np.float32)
    count = min(FIRST_CANDIDATES, len(scaled))
    while True:
        found = _pair(_merge(shards.call("nearest", scaled, count), starts))
        if found is not None:
            return found
        assert count < len(scaled), "k-means found K different patches"
        count = min(2 * count, len(scaled))


def _merge(parts: list[Candidates], starts: NDArray[np.int64]) -> Candidates:
    """The candidates of all shards; rows are indices into all patches."""
    return Candidates(
        np.concatenate([part.distances for part in parts], 1),
        np.concatenate([part.rows + start for part, start in zip(parts, starts[:-1], strict=True)], 1),
        np.concatenate([part.patches for part in parts], 1),
    )


def _pair(found: Candidates) -> Exemplars | None:
    """Greedy pairing by distance, then index; None if a centroid has no candidate left."""
    k, width = found.rows.shape
    chosen = np.full(k, -1)
    taken: set[bytes] = set()
    for flat in np.lexsort((found.rows.ravel(), found.distances.ravel())):
        centroid, candidate = divmod(int(flat), width)
        value = found.patches[centroid, candidate].tobytes()
        if chosen[centroid] < 0 and value not in taken:
            chosen[centroid] = candidate
            taken.add(value)
    if (chosen < 0).any():
        return None
    pick = np.arange(k), chosen
    return Exemplars(found.patches[pick], found.distances[pick] / 255**2, found.rows[pick])
