"""Section `bank`: patches/s of the extraction, k-means compared with scikit-learn's and with a GPU's.

Shapes: M patches, K centroids, D = C * P * P pixels of a patch.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin_min

from npdraw_dist.bank.kmeans import kmeans
from npdraw_dist.bank.patches import extract
from npdraw_dist.bank.search import has_gpu
from npdraw_dist.bank.shards import LocalShards
from npdraw_dist.bench.workload import Figures, Workload, median_seconds, timed
from npdraw_dist.core.errors import UserError

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
        **_on_gpu(patches, settings.size, experiment.seed),
    }


def _against_sklearn(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """One run of each, in turns: ours before and after each of scikit-learn's, its median counts."""
    floats = patches.astype(np.float32) / np.float32(255)
    ours = partial(kmeans, LocalShards([patches], gpu=False), k, seed)
    theirs = {
        "sklearn": KMeans(k, algorithm="lloyd", n_init=1, random_state=seed),
        "minibatch": MiniBatchKMeans(k, n_init=1, random_state=seed),
    }
    clusters, seconds = timed(ours)
    times = [seconds]
    figures: Figures = {"kmeans_patches": len(patches)}
    for name, model in theirs.items():
        figures[f"{name}_s"] = timed(partial(model.fit, floats))[1]
        figures[f"{name}_objective"] = objective(floats, model.cluster_centers_)
        clusters, seconds = timed(ours)
        times.append(seconds)
    figures["kmeans_s"] = float(np.median(times))
    figures["kmeans_objective"] = objective(floats, clusters.centroids)
    for name in theirs:
        figures[f"kmeans_speedup_vs_{name}"] = figures[f"{name}_s"] / figures["kmeans_s"]
        figures[f"kmeans_objective_vs_{name}"] = figures["kmeans_objective"] / figures[f"{name}_objective"]
    return figures


def objective(patches: NDArray[np.float32], centroids: NDArray[Any]) -> float:
    """Mean squared distance of `patches` (M, D) to the nearest of `centroids` (K, D), without FAISS."""
    _, distances = pairwise_distances_argmin_min(patches, centroids.astype(np.float32), metric="sqeuclidean")
    return float(distances.mean(dtype=np.float64))


def _on_gpu(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """K-means whose search is on the GPU, against the CPU's, in turns; nothing without a GPU for FAISS."""
    if not has_gpu():
        return {}
    shards = [LocalShards([patches], gpu=gpu) for gpu in (False, True)]
    cpu, gpu = (partial(kmeans, one, k, seed) for one in shards)
    gpu()  # makes the context
    cpu_s, gpu_s = median_seconds([cpu, gpu], 3)
    floats = patches.astype(np.float32) / np.float32(255)
    theirs, ours = (objective(floats, clusters().centroids) for clusters in (cpu, gpu))
    return {
        "kmeans_gpu_s": gpu_s,
        "kmeans_gpu_speedup": cpu_s / gpu_s,
        "kmeans_gpu_objective_vs_cpu": ours / theirs,
    }
