"""Section `bank`: patches/s of the extraction, k-means compared with scikit-learn's, its search
with FAISS's, one shard with several.

Shapes: M patches, K centroids, D = C * P * P pixels of a patch.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin_min

from npdraw_dist.bank.assign import quantized
from npdraw_dist.bank.kmeans import kmeans, lloyd
from npdraw_dist.bank.patches import extract
from npdraw_dist.bank.searcher import Products, has_gpu, one_blas_thread
from npdraw_dist.bank.shard import LocalShards
from npdraw_dist.bench.timing import median_seconds, timed
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import is_there

QUICK_PATCHES, FULL_PATCHES = 50_000, 1_000_000
SHARDS = (2, 4)
SEARCHED = 16_384  # patches, as in a chunk
SHARDED_ITERATIONS = 10


def run(work: Workload) -> Figures:
    """Times and objectives. `*_vs_*`: of objectives ours over theirs, of times theirs over ours."""
    experiment, rng = work.experiment, np.random.default_rng(work.experiment.seed)
    canvases, settings = work.canvases, work.experiment.bank
    extraction = partial(extract, canvases, experiment.canvas_grid, settings.min_energy)
    patches = extraction()
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
        **_against_sklearn(patches, settings.size, experiment.seed),
        **_against_faiss(patches, settings.size, experiment.seed),
        **_sharded(patches, settings.size, experiment.seed),
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


def _against_faiss(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """The search of one thread of the CPU against FAISS's, in turns; nothing where FAISS is not installed."""
    if not is_there("faiss"):
        return {}
    import faiss

    rng, threads = np.random.default_rng(seed), faiss.omp_get_max_threads()
    centroids = quantized(patches[rng.choice(len(patches), k, replace=False)])
    theirs = faiss.IndexFlatL2(centroids.shape[1])
    theirs.add(centroids)
    queries = patches[:SEARCHED].astype(np.float32)
    indexes = (Products(centroids), theirs)
    faiss.omp_set_num_threads(1)
    try:
        with one_blas_thread():
            ours_s, theirs_s = median_seconds([partial(index.search, queries, 2) for index in indexes], 5)
    finally:
        faiss.omp_set_num_threads(threads)
    each_us = ours_s / len(queries) * 1e6
    return {"search_s": ours_s, "search_us_per_patch": each_us, "search_speedup_vs_faiss": theirs_s / ours_s}


def objective(patches: NDArray[np.float32], centroids: NDArray[Any]) -> float:
    """Mean squared distance of `patches` (M, D) to the nearest of `centroids` (K, D), without FAISS."""
    _, distances = pairwise_distances_argmin_min(patches, centroids.astype(np.float32), metric="sqeuclidean")
    return float(distances.mean(dtype=np.float64))


def _sharded(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """The largest differences, over SHARDS, from the result of one shard with the same start.

    The shards are in this process; the Ray actors of `bank.ray_shards` hold the same ones.
    """
    rng = np.random.default_rng(seed)
    start = patches[rng.choice(len(patches), k, replace=False)].astype(np.float32) / np.float32(255)
    one, *others = (
        lloyd(LocalShards(np.array_split(patches, count), gpu=False), start, SHARDED_ITERATIONS)
        for count in (1, *SHARDS)
    )
    return {
        "sharded_objective_difference": max(abs(o.objective - one.objective) for o in others) / one.objective,
        "sharded_centroid_difference": max(float(np.abs(o.centroids - one.centroids).max()) for o in others),
    }


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
