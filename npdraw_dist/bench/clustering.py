"""Section `bank`: patches/s of the extraction, k-means compared with scikit-learn's and with a GPU's.

Shapes: M patches, K centroids, D = C * P * P pixels of a patch.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from npdraw_dist.bank.kmeans import kmeans
from npdraw_dist.bank.patches import extract
from npdraw_dist.bank.search import has_gpu
from npdraw_dist.bank.shards import LocalShards
from npdraw_dist.bench.workload import Figures, Workload, median_seconds
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.device import timed

QUICK_PATCHES, FULL_PATCHES = 50_000, 1_000_000


def run(work: Workload) -> Figures:
    """Times and objectives. `*_vs_*`: of objectives ours over theirs, of times theirs over ours."""
    experiment, rng = work.experiment, np.random.default_rng(work.experiment.seed)
    canvases, settings = work.canvases, work.experiment.bank
    extraction = partial(extract, canvases, experiment.canvas_grid, settings.min_energy)
    patches = extraction()
    per_image = len(patches) / len(canvases)
    (seconds,) = median_seconds([extraction], 3)
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
        "bank_patches_per_image": per_image,
        **_against_sklearn(patches, settings.size, experiment.seed),
    }


def _against_sklearn(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """Ours before and after scikit-learn's, the mean of both counts."""
    floats = patches.astype(np.float32) / np.float32(255)
    ours = partial(kmeans, LocalShards([patches], gpu=False), k, seed)
    theirs = KMeans(k, algorithm="lloyd", n_init=1, random_state=seed)
    clusters, before_s = timed(ours)
    sklearn_s = timed(partial(theirs.fit, floats))[1]
    seconds = (before_s + timed(ours)[1]) / 2
    mean, of_sklearn = objective(floats, clusters.centroids), objective(floats, theirs.cluster_centers_)
    figures: Figures = {
        "kmeans_patches": len(patches),
        "kmeans_objective": mean,
        "sklearn_s": sklearn_s,
        "sklearn_objective": of_sklearn,
        "kmeans_s": seconds,
        "kmeans_speedup_vs_sklearn": sklearn_s / seconds,
        "kmeans_objective_vs_sklearn": mean / of_sklearn,
    }
    if has_gpu():
        on_gpu = partial(kmeans, LocalShards([patches], gpu=True), k, seed)
        centroids = on_gpu().centroids  # makes the context
        cpu_s, figures["kmeans_gpu_s"] = median_seconds([ours, on_gpu], 3)
        figures["kmeans_gpu_speedup"] = cpu_s / figures["kmeans_gpu_s"]
        figures["kmeans_gpu_objective_vs_cpu"] = objective(floats, centroids) / mean
    return figures


def objective(patches: NDArray[np.float32], centroids: NDArray[Any]) -> float:
    """Mean squared distance of `patches` (M, D) to the nearest of `centroids` (K, D), without FAISS."""
    _, distances = pairwise_distances_argmin_min(patches, centroids.astype(np.float32), metric="sqeuclidean")
    return float(distances.mean(dtype=np.float64))
