"""Pieces of work for a pool of actors, whose results do not depend on how many actors there are.

A split is cut into its shards, a shard into batches of BATCH images. Whoever works on a batch seeds its
noise by (shard, batch); what comes back is put in that order before anything is summed. No batch is padded.
Shapes: B images of a batch, C channels, H x W pixels.
"""

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.data.splits import Split, unit_hash
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.scores import BATCH

Place = tuple[int, int]  # shard, batch


@dataclass(frozen=True)
class Pool:
    """Actors of one CPU, or of one GPU, each."""

    size: int
    gpu: bool

    @classmethod
    def of(cls, scale: ScaleConfig, asked: bool) -> "Pool":
        """scale.num_workers actors where that was asked for, else as many as the cluster has slots."""
        have = ray.cluster_resources()
        gpu = scale.use_gpu is not False and have.get("GPU", 0) >= 1
        slots = max(int(have.get("GPU" if gpu else "CPU", 1)), 1)
        return cls(min(scale.most_workers, slots) if asked else slots, gpu)

    def run(self, what: str, items: Sequence[Any], total: int, actor: type, *arguments: Any) -> list[Any]:
        """What `actor(*arguments)` makes of each item, in any order; `total` images are shown as the goal.

        Raises UserError where an actor did.
        """
        if not items:
            return []
        rows = [{"item": item} for item in items]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            actor,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=min(self.size, len(rows))),
            num_cpus=0 if self.gpu else 1,
            num_gpus=1 if self.gpu else 0,
        )
        found = []
        with stage_progress(what, total) as show:
            done, started = 0, time.perf_counter()
            for row in dataset.iter_rows():
                result = pickle.loads(row["result"])  # of our own actors
                if result["error"]:
                    raise UserError(result["error"])
                found.append(result)
                done += result["images"]
                show(done, done / (time.perf_counter() - started))
        return found


@dataclass(frozen=True)
class Portion:
    """Every `parts`-th batch of a shard, from batch `part` on; ids up to `threshold` of their hash."""

    number: int
    shard: Shard
    part: int
    parts: int
    threshold: float
    seed: int

    def batches(self, rows: Rows) -> Iterator[tuple[Place, Tensor]]:
        """((shard, batch), uint8 images (B, C, H, W)) of the shard's `rows`."""
        if self.threshold < 1:
            chosen = [i for i, name in enumerate(rows.ids) if _hash(self.seed, name) <= self.threshold]
            rows = rows.take(chosen)
        for batch in range(self.part, -(-len(rows) // BATCH), self.parts):
            images = rows.images[batch * BATCH : (batch + 1) * BATCH]
            yield (self.number, batch), torch.from_numpy(np.ascontiguousarray(images))


def _hash(seed: int, name: str) -> float:
    return unit_hash(seed, "evaluate", name)


class Worker:
    """What the actors share: their device, and the last shard that was read."""

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
        # One CPU each; sums also come out in another order with another number of threads.
        torch.set_num_threads(1)
        self._read: tuple[str, Rows] | None = None

    def rows(self, shard: Shard) -> Rows:
        if self._read is None or self._read[0] != shard.name:
            self._read = (shard.name, shard.read())
        return self._read[1]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A user's mistake comes back as a line, since Ray wraps what is raised."""
        try:
            result = {"error": "", **self.work(row["item"])}
        except UserError as error:
            result = {"error": str(error), "images": 0}
        return {"result": pickle.dumps(result)}  # Arrow would take the places apart

    def work(self, item: Any) -> dict[str, Any]:
        """At least `images`, the number that were worked on."""
        raise NotImplementedError


class _Ids(Worker):
    """The hashes of a shard's ids."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def work(self, item: Portion) -> dict[str, Any]:
        rows = self.rows(item.shard)
        return {"images": len(rows), "hashes": [_hash(self.seed, name) for name in rows.ids]}


@dataclass(frozen=True)
class Work:
    """The portions of a split, and how many images they have; 0 where only reading would tell."""

    portions: list[Portion]
    images: int


def work_of(source: Source, split: Split, limit: int | None, seed: int, pool: Pool) -> Work:
    """The work of a split, for a pool: at most `limit` images, chosen by a hash of (seed, id).

    Raises UserError where the split has no image.
    """
    shards = source.shards(split)
    if not shards:
        raise UserError(f"the data have no split {split!r}: it has no image")
    total, threshold = source.count(split), 1.0
    if limit is not None and (total is None or limit < total):
        whole = [Portion(number, shard, 0, 1, 1.0, seed) for number, shard in enumerate(shards)]
        found = pool.run("choose", whole, total or 0, _Ids, seed)
        hashes = sorted(value for result in found for value in result["hashes"])
        threshold = hashes[limit - 1] if limit < len(hashes) else 1.0
        total = min(limit, len(hashes))
    parts = -(-2 * pool.size // len(shards))  # so that every actor has work; the results are the same
    portions = [
        Portion(number, shard, part, parts, threshold, seed)
        for number, shard in enumerate(shards)
        for part in range(parts)
    ]
    return Work(portions, total or 0)


def in_order(found: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """The values that actors returned as {place: value} under `key`, by place."""
    placed = {place: value for result in found for place, value in result[key].items()}
    return [placed[place] for place in sorted(placed)]
