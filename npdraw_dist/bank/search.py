"""Finds nearest vectors and assigns patches to centroids exactly, with the same result on every machine.

A CPU searches with matrix products, which are faster there than FAISS; a GPU searches with FAISS. Both round
to float32, and the rounding depends on the processor and the library. So the few patches that are almost as
close to a second centroid are assigned again in float64, where the product of a uint8 patch and a `quantized`
centroid is exact.
Shapes: n vectors or patches, q queries, K centroids, D = C * P * P pixels of a patch, in 0..255.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import is_there

# By default FAISS takes 1.5 GiB of a GPU, which other processes may share. A chunk of patches needs 50 MB.
TEMPORARY_BYTES = 256 << 20
BLOCK = 1 << 20  # distances computed at once; their 4 MB stay in a processor's cache
STEPS_PER_PIXEL_UNIT = 2.0**16
FEW = 16  # up to 16 nearest vectors are found by one pass each; for more, sorting is faster
_libraries = cache(ThreadpoolController)  # finding the libraries takes milliseconds


class Searcher:
    """Makes indexes of vectors. On a GPU there is one index, which each call fills again.

    gpu: whether to search on a GPU; with None, only if FAISS finds one. Raises UserError if `gpu` is true and
    FAISS finds no GPU.
    """

    def __init__(self, gpu: bool | None) -> None:
        self.gpu = gpu is not False and has_gpu()
        if gpu and not self.gpu:
            raise UserError(
                "FAISS finds no GPU here; set scale.use_gpu to false, or install FAISS for GPUs: "
                "pip install 'npdraw_dist[gpu]'"
            )
        self._on_gpu: Any = None
        if self.gpu:
            import faiss

            self._resources: Any = faiss.StandardGpuResources()
            self._resources.setTempMemory(TEMPORARY_BYTES)

    def index(self, vectors: NDArray[np.float32]) -> Any:
        """An index of `vectors` (n, D) with the method `search`. On a GPU it is valid until the next call."""
        if not self.gpu:
            return Products(vectors)
        if self._on_gpu is None:
            import faiss

            self._on_gpu = faiss.GpuIndexFlatL2(self._resources, vectors.shape[1])
        assert self._on_gpu.d == vectors.shape[1], "the patches of a shard have one size"
        self._on_gpu.reset()
        self._on_gpu.add(vectors)
        return self._on_gpu


def has_gpu() -> bool:
    """Whether FAISS is installed and finds a GPU."""
    if not faiss_is_for_gpus():
        return False
    import faiss

    return bool(faiss.get_num_gpus() > 0)


def faiss_is_for_gpus() -> bool:
    """Whether FAISS is installed and built for GPUs, which this machine need not have."""
    if not is_there("faiss"):
        return False
    import faiss

    return hasattr(faiss, "StandardGpuResources")


class Products:
    """Finds the `vectors` (n, D) nearest to queries by computing |x|^2 - 2 x.c + |c|^2 for all pairs."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._doubled = np.ascontiguousarray(-2 * vectors.T)
        self._squares = np.einsum("nd,nd->n", vectors, vectors)

    def search(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Squared distances and rows (q, count) of the vectors nearest to `queries` (q, D), nearest first.

        Equally near vectors come in the order of their rows.
        """
        lengths = np.einsum("qd,qd->q", queries, queries)[:, None]
        distances = np.empty((len(queries), count), np.float32)
        rows = np.empty((len(queries), count), np.int64)
        step = max(1, BLOCK // len(self._squares))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            apart = queries[block] @ self._doubled
            apart += self._squares  # |x|^2 is the same for all vectors, and is added at the end
            if count > FEW:
                rows[block] = np.argsort(apart, 1, kind="stable")[:, :count]
                distances[block] = np.take_along_axis(apart, rows[block], 1)
                continue
            every = np.arange(len(apart))
            for turn in range(count):
                rows[block, turn] = nearest = apart.argmin(1)
                distances[block, turn] = apart[every, nearest]
                apart[every, nearest] = np.inf
        return np.maximum(distances + lengths, 0), rows


def one_blas_thread() -> AbstractContextManager[Any]:
    """Limits BLAS to one thread, so that its threads do not compete with the caller's threads."""
    return _libraries().limit(limits=1, user_api="blas")


def quantized(centroids: NDArray[Any]) -> NDArray[np.float32]:
    """Rounds `centroids` to multiples of 2^-16 of a grey value, which float32 represents exactly."""
    steps = np.rint(np.asarray(centroids, np.float64) * STEPS_PER_PIXEL_UNIT)
    return np.ascontiguousarray(steps / STEPS_PER_PIXEL_UNIT, np.float32)


class Assigner:
    """Assigns patches to `quantized` centroids (K, D), which `index` searches."""

    def __init__(self, centroids: NDArray[np.float32], index: Any) -> None:
        self._index = index
        self._centroids = centroids.astype(np.float64)
        self._halves = (self._centroids**2).sum(1) / 2

    def __call__(self, patches: NDArray[np.float32]) -> tuple[NDArray[np.int64], int, float]:
        """Returns the nearest centroid (n,) of each of `patches` (n, D), n > 0; ties go to the first.

        Also returns the row and squared distance of the patch that is farthest from its centroid.
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
        """Bounds, for each patch (n,), the float32 error of the difference of two squared distances.

        The error of a sum of D terms is less than D 2^-24 times their size. The terms are |x|^2, |c|^2 and
        2 |x.c|, and |c|^2 <= 2 |x|^2 + 2 `squared` for any centroid that can be the nearest.
        """
        lengths = np.einsum("nd,nd->n", patches, patches)
        terms = 5 * lengths + 4 * np.maximum(squared, 0)
        return (patches.shape[1] + 4) * np.float32(2.0**-22) * terms

    def _scores(self, patches: NDArray[np.float32]) -> NDArray[np.float64]:
        """x.c - |c|^2 / 2 (n, K) of each patch and centroid; the nearest c has the largest. x.c is exact."""
        # With `@` the threads of BLAS would compete with the caller's threads.
        products = np.einsum("nd,kd->nk", patches.astype(np.float64), self._centroids)
        return products - self._halves
