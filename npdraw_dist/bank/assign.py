"""The nearest centroid of each patch, independent of how the patches are split into blocks.

A search computes in float32, and its rounding depends on the number of patches of a call, on the processor
and on what searches: products or FAISS. A patch that is about as near to two centroids could go to either.
These few patches are assigned again in float64, where the product of a uint8 patch and a centroid with
`quantized` pixels is exact in any order of summation.
Shapes: n patches, K centroids, D = C * P * P pixels of a patch, in 0..255.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS_PER_PIXEL_UNIT = 2.0**16


def quantized(centroids: NDArray[Any]) -> NDArray[np.float32]:
    """Rounds `centroids` to multiples of 2^-16 of a grey value, which float32 represents exactly."""
    return np.ascontiguousarray(
        np.rint(np.asarray(centroids, np.float64) * STEPS_PER_PIXEL_UNIT) / STEPS_PER_PIXEL_UNIT, np.float32
    )


class Assigner:
    """Assigns patches to `centroids` (K, D), which are `quantized`. `index` searches them."""

    def __init__(self, centroids: NDArray[np.float32], index: Any) -> None:
        self._index = index
        self._centroids = centroids.astype(np.float64)
        self._halves = (self._centroids**2).sum(1) / 2

    def __call__(self, patches: NDArray[np.float32]) -> tuple[NDArray[np.int64], int, float]:
        """Assigns `patches` (n, D), n > 0.

        Returns the nearest centroid of each (n,), the first of equally near ones; the row farthest from its
        centroid, the first of equally far ones; and the squared distance of that row.
        """
        squared, found = self._index.search(patches, min(2, len(self._halves)))
        nearest = np.ascontiguousarray(found[:, 0])
        margin = self._margin(patches, squared[:, 0])
        close = np.flatnonzero(squared[:, -1] - squared[:, 0] <= margin)
        nearest[close] = self._scores(patches[close]).argmax(1)
        far = np.flatnonzero(squared[:, 0] + margin >= (squared[:, 0] - margin).max())
        scores = self._scores(patches[far])[np.arange(len(far)), nearest[far]]
        distances = (patches[far].astype(np.float64) ** 2).sum(1) - 2 * scores
        worst = int(distances.argmax())
        return nearest, int(far[worst]), max(float(distances[worst]), 0.0)

    def _margin(self, patches: NDArray[np.float32], squared: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,): an upper bound of the float32 error of the difference of two centroids' squared distances.

        The error of a sum of D terms is less than D 2^-24 times the size of the terms. These are |x|^2, |c|^2
        and 2 |x.c|, where |c|^2 <= 2 |x|^2 + 2 `squared` for a centroid that can be the nearest.
        """
        lengths = np.einsum("nd,nd->n", patches, patches)
        terms = 5 * lengths + 4 * np.maximum(squared, 0)
        margin: NDArray[np.float32] = (patches.shape[1] + 4) * np.float32(2.0**-22) * terms
        return margin

    def _scores(self, patches: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, K): x.c - |c|^2 / 2, largest for the nearest c; x.c is exact."""
        # Not `@`: the threads of BLAS would compete with those of the caller.
        products = np.einsum("nd,kd->nk", patches.astype(np.float64), self._centroids)
        scores: NDArray[np.float64] = products - self._halves
        return scores
