"""Computes scores, features and edits for an evaluation, in a pool of processes or in this process.

A split has shards, and a shard has batches of BATCH images. Each batch has a `Key`, which seeds its noise.
Results are sorted by key before they are summed, so the number of processes changes no result. No batch is
padded. Shapes: B images of a batch, C channels, H x W pixels, N real images, M generated ones, D features.
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
from npdraw_dist.data.parses import Conditions
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.distributed import resources
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import Loaded, Pool, map_items
from npdraw_dist.evaluate.edits import measure_edits
from npdraw_dist.evaluate.settings import EvaluationSettings
from npdraw_dist.measure.distances import all_distances
from npdraw_dist.measure.features import ExtractorFile
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.progress import console, stage_progress
from npdraw_dist.pipeline.scores import BATCH, bank_usage, part_counts, score_images, summary
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import local_device
from npdraw_dist.training.feed import noise_seed

SAMPLES = 64  # number of samples in a batch; each batch has its own noise seed
REAL, GENERATED = 2**32 - 3, 2**32 - 4  # keep the seeds for features and samples apart from other seeds

Key = tuple[int, int]  # (shard in the split, batch in the shard); shard -1 stands for samples


@dataclass
class Found:
    """The results of one item of work. images: the number of images. ids: the ids of real images.

    values: key of a batch -> name -> array. hashes: the smallest hashes of the ids, found by `_least_hashes`.
    rejects: the number of unreadable rows of the shard, which only one item of each shard reports.
    """

    images: int = 0
    values: dict[Key, dict[str, NDArray[Any]]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    hashes: list[float] = field(default_factory=list)
    rejects: int = 0


def pool_of(scale: ScaleConfig, sized: bool) -> Pool:
    """A pool with an actor for each GPU (or share of a GPU) of the cluster; for each CPU if no GPU is used.

    sized: at most scale.num_workers. Waits for room for one actor; raises UserError if none comes in wait_s.
    """
    if scale.in_process:
        return Pool(1, float(local_device(scale.use_gpu).type == "cuda"))
    one = {"num_workers": 1, "cpus_per_worker": 1}
    resources.plan_workers(scale.model_copy(update=one), lambda line: console.print(line, markup=False))
    nodes = resources.living_nodes()
    with_gpus = resources.room(nodes, 0, scale.gpus_per_worker)
    gpu = scale.use_gpu is not False and with_gpus > 0
    slots = max(with_gpus if gpu else sum(node.cpus for node in nodes), 1)
    size = min(scale.most_workers, slots) if sized else slots
    return Pool(size, resources.ray_share(scale.gpus_per_worker) if gpu else 0.0)


def run(title: str, items: Sequence[Any], total: int, work: Any, pool: Pool | None = None) -> list[Any]:
    """Returns `work(item)` for each item, in any order. Uses Ray (`pool`, or tasks), else this process.

    The progress display counts the `images` of the results, out of `total`. Prints a line if the pool has to
    wait for a GPU. Raises what `work` raises.
    """
    gpus = pool.gpus if pool is not None and ray_runs() else 0
    if gpus and not resources.room([resources.free_now()], 0, gpus):
        nodes = resources.listed(resources.living_nodes())
        console.print(f"{title}: waits for a free GPU; nodes: {nodes}")
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
    """An item of work, which is every `stride`-th batch of a shard, from batch `first` on.

    number: the index of the shard in its split. threshold: images are left out if their id's hash is larger.
    """

    number: int
    shard: Shard
    first: int = 0
    stride: int = 1
    threshold: float = 1.0

    def batches(self, rows: Rows) -> Iterator[tuple[Key, Rows]]:
        """Yields the key and the rows of each batch of the slice. rows: all rows of the shard."""
        if self.threshold < 1:
            rows = rows.take([i for i, name in enumerate(rows.ids) if id_hash(name) <= self.threshold])
        for batch in range(self.first, -(-len(rows) // BATCH), self.stride):
            yield (self.number, batch), rows.take(range(batch * BATCH, min((batch + 1) * BATCH, len(rows))))


class SampleBatch(NamedTuple):
    """An item of work that draws `samples` samples. number: the index of this batch of samples."""

    number: int
    samples: int


class Work(NamedTuple):
    """The slices of a split. images: the number of images in them; 0 if it is known only after reading."""

    slices: list[ShardSlice]
    images: int


def id_hash(name: str) -> float:
    """The hash that decides whether an image is measured. The seed is fixed, so all evaluations agree."""
    return unit_hash(0, "evaluate", name)


def _least_hashes(limit: int, shard: Shard) -> Found:
    """Finds the `limit` smallest hashes of a shard, so that the driver does not receive all hashes."""
    ids = shard.read().ids
    return Found(len(ids), hashes=nsmallest(limit, map(id_hash, ids)))


def plan_work(shards: Sequence[Shard], total: int | None, limit: int | None, actors: int) -> Work:
    """Divides all images of the shards, or the `limit` images with the smallest hash of the id, into slices.

    total: the number of images in the shards; None if it is known only after reading.
    """
    threshold = 1.0
    if limit is not None and (total is None or limit < total):
        found = run("choose", shards, total or 0, partial(_least_hashes, limit))
        hashes = nsmallest(limit, chain.from_iterable(each.hashes for each in found))
        images = sum(each.images for each in found)
        threshold = hashes[-1] if limit < images else 1.0
        total = min(limit, images)
    stride = -(-2 * actors // len(shards))  # at least two slices for each actor; does not change the results
    starts = product(enumerate(shards), range(stride))
    return Work([ShardSlice(*shard, first, stride, threshold) for shard, first in starts], total or 0)


class Worker:
    """Scores images by a model or, if it has an extractor, computes features of images and samples.

    settings.pixels: for features, `drawn` binarizes images and draws samples from p(x|z); `mean` does
    neither. conditions: reads the condition of each image, which is then scored with and without it.
    """

    def __init__(
        self,
        model: GenerativeModel,
        settings: EvaluationSettings,
        gpu: bool = False,
        extractor: ExtractorFile | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        assert settings.pixels != "auto"
        if ray_runs():  # a task has one CPU; more threads would also sum in another order
            torch.set_num_threads(1)
        self.device = local_device(None if gpu else False)
        self.model, self.settings, self.conditions = model.to(self.device), settings, conditions
        self.extract = None if extractor is None else extractor.open(self.device)
        self._read: tuple[str, Rows] | None = None  # name and rows of the shard that was read last

    def __call__(self, item: ShardSlice | SampleBatch) -> Found:
        if isinstance(item, SampleBatch):
            samples = self.model.sample(
                item.samples,
                generator=self._generator((GENERATED, item.number)),
                temperature=self.settings.temperature,
                pixels=self.settings.pixels == "drawn",
            )
            features = self._extracted(samples)
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
        images, model, how = torch.from_numpy(rows.images), self.model, self.settings
        if self.extract is not None:
            return {"real": self.features(images, (REAL, *key)).numpy()}
        condition = None if self.conditions is None else self.conditions.of_rows(rows)
        scores = score_images(model, images, how.k, how.seed, *key, condition=condition)
        if isinstance(model, NPDraw):
            scores["counts"] = part_counts(model, images, how.seed, *key)[None]
        return {name: values.numpy() for name, values in scores.items()}

    def features(self, images: Tensor, key: Sequence[int]) -> Tensor:
        """uint8 images (B, C, H, W) -> features (B, D). `key` seeds the binarization of `drawn` pixels."""
        binarize = self.model.spec.binarize if self.settings.pixels == "drawn" else "none"
        return self._extracted(binarized(images.to(self.device), binarize, self._generator(key)))

    def _extracted(self, images: Tensor) -> Tensor:
        assert self.extract is not None, "there is no extractor"
        return self.extract(images.float())

    def _generator(self, key: Sequence[int]) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(noise_seed(self.settings.seed, *key))


def in_batch_order(results: Sequence[Found]) -> dict[str, Tensor]:
    """Name -> the arrays of all batches, concatenated in the order of the batches' keys."""
    by_key = {key: arrays for found in results for key, arrays in found.values.items()}
    columns: dict[str, list[Tensor]] = {}
    for key in sorted(by_key):
        for name, array in by_key[key].items():
            columns.setdefault(name, []).append(torch.from_numpy(array))
    return {name: torch.cat(parts) for name, parts in columns.items()}


@dataclass(frozen=True)
class Evaluation:
    """A model and the images on which it is measured. pool: None if this process alone does the work."""

    model: GenerativeModel
    settings: EvaluationSettings
    work: Work
    pool: Pool | None = None
    conditions: Conditions | None = None

    def _measured(
        self, title: str, samples: Sequence[SampleBatch] = (), extractor: ExtractorFile | None = None
    ) -> list[Found]:
        items, gpu = [*self.work.slices, *samples], self.pool is not None and self.pool.gpus > 0
        worker: Loaded[Any, Found] = Loaded(
            Worker, self.model, self.settings, gpu, extractor, self.conditions
        )
        if self.pool is None:
            return [worker(item) for item in items]
        total = self.work.images + sum(batch.samples for batch in samples)
        return run(title, items, total, worker, self.pool)

    def scores(self) -> list[Found]:
        """Scores all images (`score_images`); for NP-DRAW, also counts how often each part is drawn."""
        return self._measured("evaluate")

    def likelihood(self) -> tuple[dict[str, Any], list[str]]:
        """Returns the `summary` of all images, and the sorted ids of the images.

        The summary includes `rejected`, the number of unreadable rows, and NP-DRAW's use of the bank.
        """
        found = self.scores()
        values = in_batch_order(found)
        if not values:
            raise UserError("the split has no image")
        counts = values.pop("counts", None)
        numbers = summary(values, self.settings.k, math.prod(self.model.spec.image_shape))
        numbers["rejected"] = sum(each.rejects for each in found)
        if counts is not None:
            numbers |= bank_usage(counts.sum(0))
        return {**numbers}, sorted(name for each in found for name in each.ids)

    def features(self, extractor: ExtractorFile, samples: int = 0) -> dict[str, Tensor]:
        """The features of all images, `real` (N, D), and of M = `samples` samples, `generated` (M, D)."""
        starts = enumerate(range(0, samples, SAMPLES))
        batches = [SampleBatch(number, min(SAMPLES, samples - start)) for number, start in starts]
        return in_batch_order(self._measured("distance", batches, extractor))

    def distances(self, count: int, extractor: ExtractorFile) -> dict[str, Any]:
        """Frechet and kernel distance, precision and recall of `count` samples compared with the images."""
        values = self.features(extractor, count)
        real, generated = values["real"], values["generated"]
        found = all_distances(real, generated, self.settings.seed)
        if extractor.is_inception:
            found |= {"fid": found["frechet_distance"], "kid": found["kernel_distance"]}
        name = "FID" if extractor.is_inception else f"Frechet distance of {extractor.name}"
        sizes = {"n_real": len(real), "n_generated": len(generated), "features": real.shape[1]}
        return {"distance": name, **found, **sizes}

    def images(self) -> Tensor:
        """All images in the order of their batches, uint8 (N, C, H, W)."""
        found = dict[Key, Tensor]()
        for _, slices in groupby(self.work.slices, key=attrgetter("number")):
            own = list(slices)
            rows = own[0].shard.read()
            batches = chain.from_iterable(item.batches(rows) for item in own)
            found |= {key: torch.from_numpy(some.images) for key, some in batches}
        return torch.cat([found[key] for key in sorted(found)])

    def edits(self, count: int, extractor: ExtractorFile | None) -> dict[str, float]:
        """Measures `count` edits of the images in this process (`measure_edits`)."""
        extract = None if extractor is None else extractor.open(self.model.device)
        return measure_edits(self.model, self.images(), count, self.settings.seed, extract)
