"""Clusters the patches of a data set into a bank of real patches (k-means, paper section 3.1).

A run that starts from a trained model or from a bank keeps the parts of that model or bank unchanged.

Shapes: M patches, K parts, C channels, P patch side, D = C * P * P.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.bank.kmeans import kmeans, snap
from npdraw_dist.bank.patches import Reservoir, draw, extract
from npdraw_dist.bank.shards import LocalShards, PatchShard, Shards, arguments_of
from npdraw_dist.config.data import GridConfig
from npdraw_dist.config.load import validated
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.images import shape_of, to_batch
from npdraw_dist.core.parts import PartBank
from npdraw_dist.system.errors import UserError

CHUNK = 16_384  # number of patches whose distances are computed at once

# (class, arguments of each shard, gpu) -> shards, each in its own process; see `distributed.actors.Actors`.
Open = Callable[[type, list[tuple[Any, ...]], bool | None], Shards]


@dataclass(frozen=True)
class BankFacts:
    """The entries about a clustering in the bank's manifest. Distances are squared; pixels are in [0, 1].

    k: K. patches: M. objective: mean distance of a patch to its centroid. cluster_sizes: number of patches in
    each part's cluster. exemplar_distance: mean distance of a centroid to its part. actor_core_seconds: CPU
    seconds that the processes of the shards used.
    """

    k: int
    patches: int
    objective: float
    cluster_sizes: list[int]
    exemplar_distance: float
    actor_core_seconds: float = field(default=0.0, compare=False)


def build_bank(
    patches: NDArray[np.uint8],
    channels: int,
    settings: BankConfig,
    seed: int,
    gpu: bool | None = False,
    others: Open | None = None,
) -> tuple[PartBank, BankFacts]:
    """Clusters `patches` (M, D) into a bank of `settings.size` parts; the parts of large clusters come first.

    gpu: whether FAISS searches on a GPU; with None, only if FAISS finds one. others: starts `settings.shards`
    processes that share the patches; with None, this process clusters all patches. Neither argument changes
    the result. Raises UserError if there are too few different patches.
    """
    _require(patches)
    opened: Shards
    if settings.shards == 1 or others is None:
        opened = LocalShards([patches], gpu)
    else:
        shares = np.array_split(patches, settings.shards)
        opened = others(PatchShard, arguments_of(shares, gpu), gpu)
    with closing(opened) as shards:
        clusters = kmeans(shards, settings.size, seed)
        order = np.argsort(-clusters.sizes, kind="stable")
        exemplars = snap(clusters.centroids[order], shards)
        elsewhere = 0.0 if isinstance(shards, LocalShards) else sum(shards.call("core_seconds"))
    side = math.isqrt(exemplars.patches.shape[1] // channels)
    parts = (torch.from_numpy(exemplars.patches).float() / 255).reshape(-1, channels, side, side)
    facts = BankFacts(
        k=settings.size,
        patches=int(clusters.sizes.sum()),
        objective=clusters.objective,
        cluster_sizes=clusters.sizes[order].tolist(),
        exemplar_distance=float(exemplars.distances.mean()),
        actor_core_seconds=round(elsewhere, 2),
    )
    return PartBank(parts), facts


def bank_of(images: Any, size: int, patch: int, background: Literal["black", "white"], seed: int) -> PartBank:
    """Clusters images into a bank of `size` parts of `patch` x `patch` pixels, as the stage `bank` does.

    images: N images of one shape, as `core.images.to_batch` takes them. background: the background of the
    images, which replaces transparent pixels. Raises UserError on unusable images or too few different
    patches.
    """
    batch = to_batch(images, shape_of(images), float(background == "white"))
    pixels = batch if batch.dtype == torch.uint8 else (batch * 255).round().byte()
    settings = validated(BankConfig, {"size": size}, where="a bank: ")
    grid = validated(
        GridConfig, {"patch": patch, "stride": patch, "background": background}, where="a bank: "
    )
    channels, height, width = pixels.shape[1:]
    places = grid.of_canvas((channels, height, width))
    found = extract(pixels.cpu().numpy(), places, settings.min_energy)
    sample = Reservoir(settings.max_patches)
    sample.add(draw(found, 0, seed))
    return build_bank(sample.result(), channels, settings, seed)[0]


def _require(patches: NDArray[np.uint8]) -> None:
    if len(patches) == 0:
        raise UserError("no patch of the training images reaches bank.min_energy; lower it")


def keep_bank(bank: PartBank, patches: NDArray[np.uint8]) -> BankFacts:
    """Measures how well `bank`, which a run starts from and keeps, fits the run's `patches` (M, D).

    `objective` is the mean squared distance of a patch to its nearest part, since there are no centroids.
    Raises UserError if there is no patch.
    """
    _require(patches)
    nearest, distance = nearest_parts(bank, patches)
    return BankFacts(
        k=len(bank),
        patches=len(patches),
        objective=float(distance.mean()),
        cluster_sizes=np.bincount(nearest, minlength=len(bank)).tolist(),
        exemplar_distance=0.0,
    )


def nearest_parts(
    bank: PartBank, patches: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of `patches` (M, D), the index (M,) of the nearest part and its squared distance (M,)."""
    parts = bank.parts.flatten(1).double()
    squares = parts.square().sum(1)
    nearest, distances = list[Tensor](), list[Tensor]()
    for start in range(0, len(patches), CHUNK):
        x = torch.from_numpy(patches[start : start + CHUNK]).double() / 255
        best = (squares - 2 * x @ parts.T).argmin(1)
        nearest.append(best)
        # A patch that equals a part gets exactly 0 from a difference, but not from the products above.
        distances.append((x.float() - bank.parts.flatten(1)[best]).double().square().sum(1))
    return torch.cat(nearest).numpy(), torch.cat(distances).numpy()
