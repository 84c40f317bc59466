"""The work of an evaluation, done by a pool of processes or in this one: bounds on log p(x), and distances.

A split has shards, and a shard has batches of BATCH images. The noise of a batch is seeded by its key, and
all that belongs to batches is sorted by key before it is summed: the number of actors changes no result.
No batch is padded. Shapes: B images of a batch, C channels, H x W pixels, K parts of the bank, N real
images, M generated ones, D features.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import nsmallest
from itertools import chain, groupby, product
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import device_here
from npdraw_dist.data.parses import Told
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.distributed.resources import listed, ray_share, room
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import Loaded, Pool, map_items
from npdraw_dist.evaluate.edits import measure_edits
from npdraw_dist.evaluate.measure import Measure
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.distances import all_distances
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.progress import console, stage_progress
from npdraw_dist.pipeline.scores import BATCH, bank_usage, part_counts, summary

SAMPLES = 64  # samples of a batch, which has noise of its own seed
REAL, GENERATED = 2**32 - 3, 2**32 - 4  # keep the seeds apart

Key = tuple[int, int]  # (shard in the split, batch in the shard); shard -1 has the samples


@dataclass
class Found:
    """The numbers of an item. images: how many it has. values: key of a batch -> arrays by name.

    rejects: unreadable rows of the item's shard, counted at one of its items.
    """

    images: int = 0
    values: dict[Key, dict[str, NDArray[Any]]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    hashes: list[float] = field(default_factory=list)
    rejects: int = 0


def pool_of(scale: ScaleConfig, sized: bool) -> Pool:
    """An actor for each GPU or share of one, else for each CPU. sized: at most scale.num_workers.

    Asks for a first node and waits for it, as a training does. Raises UserError if none comes.
    """
    if scale.here:
        return Pool(1, float(device_here(scale.use_gpu).type == "cuda"))
    from npdraw_dist.distributed.resources import living_nodes, plan_workers

    one = {"num_workers": 1, "cpus_per_worker": 1}
    plan_workers(scale.model_copy(update=one), lambda line: console.print(line, markup=False))
    nodes = living_nodes()
    with_gpus = room(nodes, 0, scale.gpus_per_worker)
    gpu = scale.use_gpu is not False and with_gpus > 0
    slots = max(with_gpus if gpu else sum(node.cpus for node in nodes), 1)
    size = min(scale.most_workers, slots) if sized else slots
    return Pool(size, ray_share(scale.gpus_per_worker) if gpu else 0.0)


def run(title: str, items: Sequence[Any], total: int, work: Any, pool: Pool | None = None) -> list[Any]:
    """`work(item)` of each item, in any order: by a pool or in tasks on Ray, else in this process.

    Each result has `images`, which count towards the `total`. Prints a line if no node has a free GPU for an
    actor now. Raises the UserError that an item raises.
    """
    if pool is not None and pool.gpus and ray_runs():
        from npdraw_dist.distributed.resources import free_now, living_nodes

        if not room([free_now()], 0, pool.gpus):
            console.print(f"{title}: waits for a free GPU; nodes: {listed(living_nodes())}")
    results: list[Any] = []
    with stage_progress(title, total) as show:
        done, started = 0, time.perf_counter()
        for result in map_items(items, work, pool):
            results.append(result)
            done += result.images
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

    def batches(self, rows: Rows) -> Iterator[tuple[Key, Rows]]:
        """Key and rows of each batch. rows: all of the shard."""
        if self.threshold < 1:
            rows = rows.take([i for i, name in enumerate(rows.ids) if _hash(name) <= self.threshold])
        for batch in range(self.first, -(-len(rows) // BATCH), self.stride):
            yield (self.number, batch), rows.take(range(batch * BATCH, min((batch + 1) * BATCH, len(rows))))


class SampleBatch(NamedTuple):
    """The `number`-th batch, of so many `samples`: an item for an actor."""

    number: int
    samples: int


class Work(NamedTuple):
    """The slices of a split, and how many images they have; 0 if only reading tells."""

    slices: list[ShardSlice]
    images: int


def _hash(name: str) -> float:
    """The number by which a part of a split is chosen. No seed: every evaluation takes the same images."""
    return unit_hash(0, "evaluate", name)


def _least_hashes(limit: int, shard: Shard) -> Found:
    """At most `limit` of a shard, so that the driver gets no number an image."""
    ids = shard.read().ids
    return Found(len(ids), hashes=nsmallest(limit, map(_hash, ids)))


def plan_work(shards: Sequence[Shard], total: int | None, limit: int | None, actors: int) -> Work:
    """All images of the shards, or the `limit` images with the smallest hash of the id.

    total: images of the shards; None if only reading tells.
    """
    threshold = 1.0
    if limit is not None and (total is None or limit < total):
        found = run("choose", shards, total or 0, partial(_least_hashes, limit))
        hashes = nsmallest(limit, chain.from_iterable(each.hashes for each in found))
        images = sum(each.images for each in found)
        threshold = hashes[-1] if limit < images else 1.0
        total = min(limit, images)
    stride = -(-2 * actors // len(shards))  # so that every actor has work; it changes no result
    starts = product(enumerate(shards), range(stride))
    return Work([ShardSlice(*shard, first, stride, threshold) for shard, first in starts], total or 0)


class Worker:
    """Measures the items of an evaluation: scores of images; or, with an extractor, features of images and
    of samples.

    conditions: gives the condition of each image, for numbers with and without it.
    """

    def __init__(
        self,
        model: GenerativeModel,
        settings: EvaluationSettings,
        gpu: bool,
        extractor: ExtractorFile | None = None,
        conditions: Told | None = None,
    ) -> None:
        self.conditions, self.scored = conditions, extractor is None
        torch.set_num_threads(1)  # an actor has one CPU; more threads would also sum in another order
        self.measure = Measure(model, settings, gpu, extractor)
        self._read: tuple[str, Rows] | None = None  # the last shard

    def __call__(self, item: ShardSlice | SampleBatch) -> Found:
        if isinstance(item, SampleBatch):
            features = self.measure.sample_features(item.samples, (GENERATED, item.number))
            return Found(item.samples, {(-1, item.number): {"generated": features.numpy()}})
        if self._read is None or self._read[0] != item.shard.name:
            self._read = (item.shard.name, item.shard.read())
        rows = self._read[1]
        found = Found(rejects=len(rows.rejects) if item.first == 0 else 0)
        for key, some in item.batches(rows):
            found.values[key] = self._numbers(key, some)
            found.ids += some.ids
            found.images += len(some)
        return found

    def _numbers(self, key: Key, rows: Rows) -> dict[str, NDArray[Any]]:
        images, model = torch.from_numpy(rows.images), self.measure.model
        if not self.scored:
            return {"real": self.measure.real_features(images, (REAL, *key)).numpy()}
        condition = None if self.conditions is None else self.conditions.of_rows(rows)
        scores = self.measure.scores(images, key, condition)
        if isinstance(model, NPDraw):
            scores["counts"] = part_counts(model, images, self.measure.how.seed, *key)[None]
        return {name: values.numpy() for name, values in scores.items()}


def in_batch_order(results: Sequence[Found]) -> dict[str, Tensor]:
    """The arrays of all batches by name, in the order of their keys, one below the other."""
    by_key = {key: arrays for found in results for key, arrays in found.values.items()}
    columns: dict[str, list[Tensor]] = {}
    for key in sorted(by_key):
        for name, array in by_key[key].items():
            columns.setdefault(name, []).append(torch.from_numpy(array))
    return {name: torch.cat(parts) for name, parts in columns.items()}


@dataclass(frozen=True)
class Evaluation:
    """A model, and the images and actors that measure it."""

    model: GenerativeModel
    settings: EvaluationSettings
    work: Work
    pool: Pool
    conditions: Told | None = None

    def _measured(
        self, title: str, samples: Sequence[SampleBatch], extractor: ExtractorFile | None
    ) -> tuple[list[Found], dict[str, Tensor]]:
        given = (self.settings, self.pool.gpus > 0, extractor, self.conditions)
        actor: Loaded[Any, Found] = Loaded(Worker, self.model, *given)
        total = self.work.images + sum(batch.samples for batch in samples)
        found = run(title, [*self.work.slices, *samples], total, actor, self.pool)
        return found, in_batch_order(found)

    def likelihood(self) -> tuple[dict[str, Any], list[str]]:
        """The `summary` of the images, the use of the bank, and `rejected`, the unreadable rows.

        Also the ids of the images, sorted.
        """
        results, values = self._measured("evaluate", [], None)
        if not values:
            raise UserError("the split has no image")
        counts = values.pop("counts", None)
        numbers = summary(values, self.settings.k, math.prod(self.model.spec.image_shape))
        numbers["rejected"] = sum(found.rejects for found in results)
        if counts is not None:
            numbers |= bank_usage(counts.sum(0))
        return {**numbers}, sorted(name for found in results for name in found.ids)

    def distances(self, count: int, extractor: ExtractorFile) -> dict[str, Any]:
        """Frechet and kernel distance, precision and recall of `count` samples to the images."""
        starts = enumerate(range(0, count, SAMPLES))
        samples = [SampleBatch(number, min(SAMPLES, count - start)) for number, start in starts]
        values = self._measured("distance", samples, extractor)[1]
        real, generated = values["real"], values["generated"]
        found = all_distances(real, generated, self.settings.seed)
        if extractor.is_inception:
            found |= {"fid": found["frechet_distance"], "kid": found["kernel_distance"]}
        name = "FID" if extractor.is_inception else f"Frechet distance of {extractor.name}"
        sizes = {"n_real": len(real), "n_generated": len(generated), "features": real.shape[1]}
        return {"distance": name, **found, **sizes}

    def edits(self, count: int, extractor: ExtractorFile | None) -> dict[str, float]:
        """`measure_edits` of the images, in this process."""
        images = dict[Key, Tensor]()
        for _, slices in groupby(self.work.slices, key=attrgetter("number")):
            own = list(slices)
            rows = own[0].shard.read()
            found = chain.from_iterable(item.batches(rows) for item in own)
            images |= {key: torch.from_numpy(some.images) for key, some in found}
        extract = None if extractor is None else extractor.open(self.model.device)
        given = torch.cat([images[key] for key in sorted(images)])
        return measure_edits(self.model, given, count, self.settings.seed, extract)
