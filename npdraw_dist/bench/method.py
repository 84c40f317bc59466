"""Sections `bank`, `parse` and `drawing`, which compare stages of the method with references in the same run.

Shapes: M patches, K centroids, D = C * P * P pixels of a patch.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min

from npdraw_dist.bank.kmeans import kmeans
from npdraw_dist.bank.patches import extract
from npdraw_dist.bank.search import has_gpu
from npdraw_dist.bank.shards import LocalShards
from npdraw_dist.bench import dense
from npdraw_dist.bench.workload import Figures, Subject, Workload, median_seconds
from npdraw_dist.distributed.tasks import one_thread
from npdraw_dist.pipeline.parse import AT_ONCE
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import cpu_count
from npdraw_dist.training.device import timed

# Each pair has the number with --quick and the number without it.
PATCHES = 50_000, 1_000_000
PARSED = 4_000, 20_000
RENDERED = 64, 500
DRAWING_REPEATS = 1, 5
PARSE_REPEATS = 7
SAMPLES = 64


def bank(work: Workload) -> Figures:
    """Measures patches/s of the extraction; compares our k-means with scikit-learn's, and with ours on a GPU.

    The ratios are our objective divided by scikit-learn's, and scikit-learn's time divided by ours.
    """
    experiment, rng = work.experiment, np.random.default_rng(work.experiment.seed)
    canvases, settings = work.canvases, work.experiment.bank
    extraction = partial(extract, canvases, experiment.canvas_grid, settings.min_energy)
    patches = extraction()
    (seconds,) = median_seconds([extraction], 3)
    limit = min(PATCHES[not work.quick], settings.max_patches)
    if len(patches) > limit:
        patches = patches[rng.choice(len(patches), limit, replace=False)]
    if len(patches) < settings.size:
        raise UserError(
            f"bank.size is {settings.size}, but the images give {len(patches)} patches; lower "
            "--bank.size or --bank.min_energy"
        )
    return {
        "bench_images": len(canvases),
        "patches_per_s": len(canvases) * experiment.canvas_grid.places / seconds,
        **_against_sklearn(patches, settings.size, experiment.seed),
    }


def _against_sklearn(patches: NDArray[np.uint8], k: int, seed: int) -> Figures:
    """Compares k-means. Our time is the mean of two runs, one before and one after scikit-learn's run."""
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
        centroids = on_gpu().centroids  # not timed, since the first call also creates the GPU's context
        cpu_s, figures["kmeans_gpu_s"] = median_seconds([ours, on_gpu], 3)
        figures["kmeans_gpu_speedup"] = cpu_s / figures["kmeans_gpu_s"]
        figures["kmeans_gpu_objective_vs_cpu"] = objective(floats, centroids) / mean
    return figures


def objective(patches: NDArray[np.float32], centroids: NDArray[Any]) -> float:
    """Mean squared distance of `patches` (M, D) to the nearest of `centroids` (K, D), without FAISS."""
    _, distances = pairwise_distances_argmin_min(patches, centroids.astype(np.float32), metric="sqeuclidean")
    return float(distances.mean(dtype=np.float64))


def parse(work: Workload) -> Figures:
    """Measures `parse_images_per_s`, the rate at which all cores parse canvases."""
    parser = work.parser()
    canvases = torch.from_numpy(work.canvases[: PARSED[not work.quick]])
    batches = canvases.split(AT_ONCE)
    # As in the stage `parse`, torch uses one thread in each thread of the pool. With more, the threads of an
    # operation would wait for each other at its end, on a busy machine for longer than they compute.
    with one_thread(), ThreadPoolExecutor(cpu_count()) as pool:
        (seconds,) = median_seconds([lambda: list(pool.map(parser, batches))], PARSE_REPEATS, warm_up=1)
    return {"parse_images_per_s": len(canvases) / seconds}


@torch.no_grad()
def drawing(work: Workload) -> Figures:
    """Measures the rendering of all T canvases of parses (`render_*`), and samples/s of prior and decoder."""
    size, repeats = RENDERED[not work.quick], DRAWING_REPEATS[not work.quick]
    subject = Subject.of(work, size)
    model = subject.model().eval()
    prior = dense.DensePrior.of(model, convolved=True).eval()
    z = subject.batch.z.to(model.device)

    rendered = [
        partial(model.render, z, steps=True),
        partial(dense.render_steps, model.bank_parts, z, model.grid),
    ]
    sampled = [
        lambda: model.sample(SAMPLES, seed=0),
        lambda: dense.sample(model, prior, SAMPLES, torch.Generator(model.device).manual_seed(0)),
    ]
    render_s, dense_s = median_seconds(rendered, repeats, warm_up=1)
    images_s, recomputed_s = median_seconds(sampled, repeats, warm_up=1)
    return {
        "render_batch": size,
        "render_canvases_per_s": size * z.steps / render_s,
        "render_speedup_vs_dense": dense_s / render_s,
        "samples_per_s": SAMPLES / images_s,
        "sample_speedup_vs_recompute": recomputed_s / images_s,
    }
