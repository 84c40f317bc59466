"""The part bank of a data set: k-means of its patches, each centroid snapped to a real one.

Shapes: M patches, K parts, C channels, P patch side, D = C * P * P.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.kmeans import cluster
from npdraw_dist.bank.shard import LocalShards, Shards
from npdraw_dist.bank.sharded import ray_shards
from npdraw_dist.bank.snapping import snap_shards
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartBank


def build_bank(
    patches: NDArray[np.uint8] | Sequence[NDArray[np.uint8] | ray.ObjectRef[NDArray[np.uint8]]],
    size: int,
    channels: int,
    patch: int,
    iterations: int,
    restarts: int,
    seed: int,
    gpu: bool = False,
    actors: int = 1,
) -> tuple[PartBank, dict[str, Any]]:
    """A bank of `size` parts, the most used first, and the facts of its clustering.

    patches: (M, D) uint8, clustered here or split over `actors`; or shards of them (n, D), one Ray
    actor each. Facts: `k`, `patches` (M), `objective` (mean squared distance of a patch to its centroid,
    summed over pixels in [0, 1]), `cluster_sizes` in the order of the parts, `exemplar_distance` (mean
    squared distance of a centroid to its part). Raises UserError where there are too few patches.
    """
    if isinstance(patches, np.ndarray):
        if len(patches) == 0:
            raise UserError("no patch of the training images reaches bank.min_energy; lower it")
        if actors == 1:
            return _build(LocalShards(patches, gpu), size, channels, patch, iterations, restarts, seed)
        patches = np.array_split(patches, actors)
    with ray_shards(patches, gpu) as shards:
        return _build(shards, size, channels, patch, iterations, restarts, seed)


def _build(
    shards: Shards, size: int, channels: int, patch: int, iterations: int, restarts: int, seed: int
) -> tuple[PartBank, dict[str, Any]]:
    clusters = cluster(shards, size, iterations, restarts, seed)
    order = np.argsort(-clusters.sizes, kind="stable")
    exemplars = snap_shards(clusters.centroids[order], shards)
    parts = torch.from_numpy(exemplars.patches).float() / 255
    facts = {
        "k": size,
        "patches": int(clusters.sizes.sum()),
        "objective": clusters.objective,
        "cluster_sizes": clusters.sizes[order].tolist(),
        "exemplar_distance": float(exemplars.distances.mean()),
    }
    return PartBank(parts.reshape(size, channels, patch, patch)), facts
