"""Section `bank`: patches/s of the extraction, k-means beside scikit-learn's, one shard beside several.

Shapes: M patches, K centroids, D = C * P * P pixels of a patch.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans

from npdraw_dist.bank.kmeans import Clustering, descend, kmeans
from npdraw_dist.bank.patches import extract
from npdraw_dist.bank.shard import PatchShard
from npdraw_dist.bench.workload import Figures, Workload, seconds_of
from npdraw_dist.core.errors import UserError

QUICK_PATCHES, FULL_PATCHES = 50_000, 1_000_000
SHARDS = (2, 4)
SHARDED_ITERATIONS = 10


def run(work: Workload) -> Figures:
    """Times and objectives; `*_vs_*` of objectives is ours over theirs, of times theirs over ours."""
    experiment, rng = work.experiment, np.random.default_rng(work.experiment.seed)
    canvases, settings = work.canvases, work.experiment.bank

    def extraction() -> NDArray[np.uint8]:
        return extract(canvases, experiment.canvas_grid, settings.sampling, settings.min_energy, rng)

    patches = extraction()
    (seconds,) = seconds_of([extraction], 3)
    limit = min(QUICK_PATCHES if work.quick else FULL_PATCHES, settings.max_patches)
    if len(patches) > limit:
        patches = patches[rng.choice(len(patches), limit, replace=False)]
    if len(patches) < settings.size:
        raise UserError(
            f"bank.size is {settings.size}, but the images give {len(patches)} patches; lower "
            "--bank.size or --bank.min_energy"
        )
    return {
        "patches_per_s": len(canvases) * experiment.canvas_grid.places / seconds,
        **against_sklearn(patches, settings.size, settings.iterations, experiment.seed),
        **sharded(patches, settings.size, experiment.seed),
    }


def against_sklearn(patches: NDArray[np.uint8], k: int, iterations: int, seed: int) -> Figures:
    """One run of each, in turns: ours before and after each of scikit-learn's, the median taken."""
    floats = patches.astype(np.float32) / np.float32(255)

    def ours() -> Clustering:
        return kmeans(patches, k, iterations, restarts=1, seed=seed)

    times = [_timed(ours)[1]]
    figures: Figures = {"kmeans_patches": len(patches)}
    for name, model in (
        ("sklearn", KMeans(k, algorithm="lloyd", n_init=1, random_state=seed)),
        ("minibatch", MiniBatchKMeans(k, n_init=1, random_state=seed)),
    ):
        figures[f"{name}_s"] = _timed(partial(model.fit, floats))[1]
        figures[f"{name}_objective"] = objective(floats, model.cluster_centers_)
        clusters, seconds = _timed(ours)
        times.append(seconds)
    seconds = float(np.median(times))
    found = objective(floats, clusters.centroids)
    figures |= {"kmeans_s": seconds, "kmeans_objective": found}
    for name in ("sklearn", "minibatch"):
        figures[f"kmeans_speedup_vs_{name}"] = figures[f"{name}_s"] / seconds
        figures[f"kmeans_objective_vs_{name}"] = found / figures[f"{name}_objective"]
    return figures


def objective(patches: NDArray[np.float32], centroids: NDArray[Any]) -> float:
    """Mean squared distance of `patches` (M, D) to the nearest of `centroids` (K, D), without FAISS."""
    centroids = centroids.astype(np.float32)
    total = 0.0
    for block in np.array_split(patches, len(patches) // 10_000 + 1):
        cross = block @ centroids.T
        apart = (block**2).sum(1)[:, None] - 2 * cross + (centroids**2).sum(1)
        total += float(np.maximum(apart.min(1), 0).sum(dtype=np.float64))
    return total / len(patches)


class SeveralShards:
    """Several shards in this process; the Ray actors of `bank.sharded` hold the same ones."""

    def __init__(self, patches: NDArray[np.uint8], count: int) -> None:
        parts = np.array_split(patches, count)
        self._shards = [PatchShard(part, number, gpu=False) for number, part in enumerate(parts)]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(shard, method)(*arguments) for shard in self._shards]


def sharded(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """The largest differences, over SHARDS, to one shard's result from the same start."""
    rng = np.random.default_rng(seed)
    start = patches[rng.choice(len(patches), k, replace=False)].astype(np.float32) / np.float32(255)
    one, *others = (
        descend(SeveralShards(patches, count), start, SHARDED_ITERATIONS) for count in (1, *SHARDS)
    )
    return {
        "sharded_objective_difference": max(abs(o.objective - one.objective) for o in others) / one.objective,
        "sharded_centroid_difference": max(float(np.abs(o.centroids - one.centroids).max()) for o in others),
    }


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started
