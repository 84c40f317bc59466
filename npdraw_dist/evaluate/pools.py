"""A pool of actors over the batches of a split; its results do not depend on the number of actors.

A split has shards, and a shard has batches of BATCH images. The noise of a batch is seeded by its key,
(shard, batch), on any actor, and results are sorted by that key before anything is summed. No batch is
padded. If scale.num_workers is 0, the only actor is in this process, without Ray. Shapes: B images of a
batch, C channels, H x W pixels.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import ray_runs
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.data.splits import Split, unit_hash
from npdraw_dist.data.tasks import Loaded, Pool, map_here, map_items
from npdraw_dist.pipeline.progress import console, stage_progress
from npdraw_dist.pipeline.scores import BATCH
from npdraw_dist.training.device import refuse_tf32
from npdraw_dist.training.workers import Share, asked_of_ray, device_here, listed, room

BatchKey = tuple[int, int]  # number of the shard in its split, number of the batch in the shard
Result = dict[str, Any]  # what an actor returns for an item: its own keys and `images`, the number it saw


@dataclass(frozen=True)
class ActorPool:
    """Actors that have one CPU, or `gpus` GPUs, each; a share below 1 is of one GPU. cpus: of the cluster.

    here: the actor is in this process.
    """

    size: int
    gpus: float = 0.0
    cpus: int = 1
    here: bool = False

    @classmethod
    def of(cls, scale: ScaleConfig, sized: bool) -> "ActorPool":
        """sized: scale.num_workers actors at most; if not, as many as fit on the nodes of the cluster."""
        if scale.here:
            return cls(1, float(device_here(scale).type == "cuda"), here=True)
        from npdraw_dist.training.cluster import living_nodes

        nodes = living_nodes()
        cpus, with_gpus = sum(node.cpus for node in nodes), room(nodes, Share(0, scale.gpus_per_worker))
        gpu = scale.use_gpu is not False and with_gpus > 0
        if scale.use_gpu and not gpu:
            raise UserError("scale.use_gpu is true, but the cluster has no GPU; set --scale.use_gpu false")
        slots = max(with_gpus if gpu else cpus, 1)
        size = min(scale.most_workers, slots) if sized else slots
        return cls(size, scale.gpus_per_worker if gpu else 0.0, cpus)

    def without_gpus(self) -> "ActorPool":
        """The same pool on CPUs, at most one actor each, for work that needs no model."""
        return replace(self, size=max(min(self.size, self.cpus), 1), gpus=0.0) if self.gpus else self

    def missing(self) -> str | None:
        """What an actor waits for, where no node has its GPUs free now; it begins once one has."""
        if self.here or not self.gpus:
            return None
        from npdraw_dist.training.cluster import free_nodes, living_nodes

        nodes, free = living_nodes(), free_nodes()
        if room(free.values(), Share(0, self.gpus)):
            return None
        return f"waits for a free GPU: {listed(nodes, free)}"

    def run(
        self, title: str, items: Sequence[Any], total: int, actor: type["PoolActor"], *arguments: Any
    ) -> list[Result]:
        """The results of `actor(*arguments)` for each item, in any order. total: images, for the progress.

        Raises UserError if an actor does.
        """
        if not items:
            return []
        if missing := self.missing():
            console.print(f"{title}: {missing}")
        results: list[Result] = []
        work: Loaded[Any, Result] = Loaded(actor, *arguments)
        pool = Pool(self.size, asked_of_ray(self.gpus) if self.gpus else 0.0)
        with stage_progress(title, total) as show:
            done, started = 0, time.perf_counter()
            for result in map_here(items, work) if self.here else map_items(items, work, pool):
                if isinstance(result, UserError):
                    raise result
                results.append(result)
                done += result["images"]
                show(done, done / (time.perf_counter() - started))
        return results


@dataclass(frozen=True)
class ShardSlice:
    """Every `stride`-th batch of a shard from batch `first` on: an item for an actor.

    number: of the shard in its split. threshold: only ids with at most this hash are taken.
    """

    number: int
    shard: Shard
    first: int
    stride: int
    threshold: float

    def batches(self, rows: Rows) -> Iterator[tuple[BatchKey, Tensor]]:
        """(key, uint8 images (B, C, H, W)) of the slice; `rows` are all of the shard."""
        chosen = self._chosen(rows)
        for batch, some in self._batches(len(chosen)):
            images = chosen.images[some]
            yield (self.number, batch), torch.from_numpy(np.ascontiguousarray(images))

    def ids(self, rows: Rows) -> list[str]:
        """The ids of the images in `batches`."""
        chosen = self._chosen(rows)
        return [name for _, some in self._batches(len(chosen)) for name in chosen.ids[some]]

    def _chosen(self, rows: Rows) -> Rows:
        if self.threshold >= 1:
            return rows
        return rows.take([i for i, name in enumerate(rows.ids) if _hash(name) <= self.threshold])

    def _batches(self, count: int) -> Iterator[tuple[int, slice]]:
        for batch in range(self.first, -(-count // BATCH), self.stride):
            yield batch, slice(batch * BATCH, (batch + 1) * BATCH)


def _hash(name: str) -> float:
    """The number by which a part of a split is chosen. No seed: every evaluation takes the same images."""
    return unit_hash(0, "evaluate", name)


class PoolActor:
    """Base of the actors: their device, and the last shard that was read."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() and _has_gpu() else "cpu")
        refuse_tf32(self.device)
        # An actor has one CPU. Another number of threads would also sum in another order.
        torch.set_num_threads(1)
        self._read: tuple[str, Rows] | None = None

    def rows(self, shard: Shard) -> Rows:
        if self._read is None or self._read[0] != shard.name:
            self._read = (shard.name, shard.read())
        return self._read[1]

    def __call__(self, item: Any) -> Result:
        raise NotImplementedError


def _has_gpu() -> bool:
    """Whether Ray gave this actor a GPU. Without Ray it has those of the process."""
    if not ray_runs():
        return True
    import ray

    return bool(ray.get_gpu_ids())


class _IdHashes(PoolActor):
    """The smallest hashes of a shard's ids, at most `limit`, so that the driver gets no number an image."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __call__(self, item: ShardSlice) -> Result:
        rows = self.rows(item.shard)
        return {"images": len(rows), "hashes": nsmallest(self.limit, map(_hash, rows.ids))}


@dataclass(frozen=True)
class Work:
    """The slices of a split and their number of images; 0 if that is unknown before the shards are read."""

    slices: list[ShardSlice]
    images: int


def require_images(source: Source, split: Split) -> None:
    """Raises UserError if the split has no image."""
    if not source.shards(split):
        raise UserError(f"the data have no split {split!r}: it has no image")


def plan_work(source: Source, split: Split, limit: int | None, pool: ActorPool) -> Work:
    """The work of a split: all its images, or those `limit` images with the smallest hash of the id.

    Raises UserError if the split has no image.
    """
    shards = source.shards(split)
    require_images(source, split)
    total, threshold = source.count(split), 1.0
    if limit is not None and (total is None or limit < total):
        whole = [ShardSlice(number, shard, 0, 1, 1.0) for number, shard in enumerate(shards)]
        results = pool.without_gpus().run("choose", whole, total or 0, _IdHashes, limit)
        hashes = nsmallest(limit, chain.from_iterable(result["hashes"] for result in results))
        found = sum(result["images"] for result in results)
        threshold = hashes[-1] if limit < found else 1.0
        total = min(limit, found)
    stride = -(-2 * pool.size // len(shards))  # so that every actor has work; it changes no result
    slices = [
        ShardSlice(number, shard, first, stride, threshold)
        for number, shard in enumerate(shards)
        for first in range(stride)
    ]
    return Work(slices, total or 0)


def in_batch_order(results: Sequence[Result], name: str) -> list[Any]:
    """The values that actors returned as {batch key: value} under `name`, sorted by key."""
    by_key = {key: value for result in results for key, value in result[name].items()}
    return [by_key[key] for key in sorted(by_key)]
