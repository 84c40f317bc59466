"""The nearest centroid of each patch, the same however the patches are split into blocks.

FAISS computes in float32, on a path that depends on how many patches come at once, so a patch about as
near to two centroids could go to either. These few are assigned again in float64, where the product of
a uint8 patch and a centroid of `quantized` pixels is exact in any order of its sums.
Shapes: n patches, K centroids, D = C * P * P pixels of a patch, in 0..255.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS_PER_PIXEL_UNIT = 2.0**16


def quantized(centroids: NDArray[Any]) -> NDArray[np.float32]:
    """`centroids` at multiples of 2^-16 of a grey value, which float32 holds."""
    return np.ascontiguousarray(
        np.rint(np.asarray(centroids, np.float64) * STEPS_PER_PIXEL_UNIT) / STEPS_PER_PIXEL_UNIT, np.float32
    )


class Assigner:
    """Assigns patches to `centroids` (K, D), `quantized`; `index` is FAISS's over them."""

    def __init__(self, centroids: NDArray[np.float32], index: Any) -> None:
        self._index = index
        self._centroids = centroids.astype(np.float64)
        self._halves = (self._centroids**2).sum(1) / 2

    def __call__(self, patches: NDArray[np.float32]) -> tuple[NDArray[np.int64], int, float]:
        """Of `patches` (n, D), n > 0: the nearest centroid of each (n,), the lowest of equally near ones;
        the row farthest from its centroid, the first of equally far ones; and its squared distance."""
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
        """(n,): more than float32 can be wrong by in the difference of two centroids' squared distances.

        A sum of D terms is wrong by less than D 2^-24 of its terms' sizes: here |x|^2, |c|^2 and
        2 |x.c|, where |c|^2 <= 2 |x|^2 + 2 `squared` for a centroid that may be the nearest.
        """
        lengths = np.einsum("nd,nd->n", patches, patches)
        return (patches.shape[1] + 4) * np.float32(2.0**-22) * (5 * lengths + 4 * np.maximum(squared, 0))

    def _scores(self, patches: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, K): x.c - |c|^2 / 2, largest where c is nearest; x.c is exact."""
        # Not `@`: the threads of BLAS would meet those of the caller.
        return np.einsum("nd,kd->nk", patches.astype(np.float64), self._centroids) - self._halves
