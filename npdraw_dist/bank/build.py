"""The part bank of a data set: k-means of its patches, each centroid snapped to a real patch (paper section
3.1).

Shapes: M patches, K parts, C channels, P patch side, D = C * P * P.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.kmeans import kmeans
from npdraw_dist.bank.shard import LocalShards, Shards
from npdraw_dist.bank.snapping import snap
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.process import ray_runs


@dataclass(frozen=True)
class BankFacts:
    """Facts of a clustering, as the bank's manifest lists them. Distances are squared, of pixels in [0, 1].

    k: K. patches: M. objective: mean distance of a patch to its centroid. cluster_sizes: patches of each
    part.
    exemplar_distance: mean distance of a centroid to its part. actor_core_seconds: CPU seconds of other
    processes that had the patches; 0 if this process had them all.
    """

    k: int
    patches: int
    objective: float
    cluster_sizes: list[int]
    exemplar_distance: float
    actor_core_seconds: float = field(default=0.0, compare=False)


def build_bank(
    patches: NDArray[np.uint8], channels: int, settings: BankConfig, seed: int, gpu: bool | None = False
) -> tuple[PartBank, BankFacts]:
    """A bank of `settings.size` parts, the most used first, from `patches` (M, D).

    With `settings.shards` > 1, as many Ray actors share the patches, where Ray runs. gpu: whether FAISS
    searches on the GPU of this process, or on those of the actors; None: if it finds one there. The result is
    the same. Raises UserError if there are too few different patches.
    """
    if len(patches) == 0:
        raise UserError("no patch of the training images reaches bank.min_energy; lower it")
    shards = settings.shards or 1
    if shards == 1 or not ray_runs():
        return _build(LocalShards([patches], gpu), channels, settings, seed)
    return build_shared_bank(np.array_split(patches, shards), channels, settings, seed, gpu)


def build_shared_bank(
    parts: Sequence[Any], channels: int, settings: BankConfig, seed: int, gpu: bool | None
) -> tuple[PartBank, BankFacts]:
    """The bank of `build_bank`, from patches that Ray actors share: as `RayShards` takes them."""
    from npdraw_dist.bank.ray_shards import RayShards

    with closing(RayShards(parts, gpu)) as shards:
        return _build(shards, channels, settings, seed)


def _build(shards: Shards, channels: int, settings: BankConfig, seed: int) -> tuple[PartBank, BankFacts]:
    clusters = kmeans(shards, settings.size, seed)
    order = np.argsort(-clusters.sizes, kind="stable")
    exemplars = snap(clusters.centroids[order], shards)
    side = math.isqrt(exemplars.patches.shape[1] // channels)
    parts = (torch.from_numpy(exemplars.patches).float() / 255).reshape(-1, channels, side, side)
    elsewhere = 0.0 if isinstance(shards, LocalShards) else sum(shards.call("core_seconds"))
    facts = BankFacts(
        k=settings.size,
        patches=int(clusters.sizes.sum()),
        objective=clusters.objective,
        cluster_sizes=clusters.sizes[order].tolist(),
        exemplar_distance=float(exemplars.distances.mean()),
        actor_core_seconds=round(elsewhere, 2),
    )
    return PartBank(parts), facts
