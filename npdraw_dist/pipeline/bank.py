"""Stage `bank`: patches of the training images, clustered; each centroid becomes a real patch."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.build import BankFacts, build_bank, keep_bank
from npdraw_dist.bank.patches import ALL, Drawn, Reservoir, draw, extract
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.pages import save_bank
from npdraw_dist.core.parts import PartBank
from npdraw_dist.core.process import ray_runs
from npdraw_dist.data.rows import RejectLimit, RejectLine, check_rejects, reject_lines, write_rejects
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.data.tasks import map_items
from npdraw_dist.pipeline import inputs
from npdraw_dist.pipeline.gpu_task import has_gpu, on_gpu
from npdraw_dist.pipeline.models import source_parts
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.store import Store, fingerprint_of, finished, required

STAGE = "bank"
PICTURES = ("bank/bank.png",)
# Shards, or up to twice as many, that are read first; fewer if they have more images than that.
PILOT, PILOT_IMAGES = 16, 100_000


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Builds bank/ from the training split; returns its manifest."""
    if (manifest := finished(store, experiment, STAGE)) is not None:
        return manifest
    made_from = fingerprint_of(experiment, STAGE)
    started, cpu_started = time.perf_counter(), time.process_time()
    with inputs.reading(experiment, store, STAGE) as (source, digest):
        found = _collect(experiment, store, source)
    extracted = time.perf_counter()
    bank, facts = _cluster(experiment, found.patches)
    done = time.perf_counter()
    with store.writing(STAGE, "bank.safetensors") as path:
        bank.save(path, {"fingerprint": made_from})
    with store.writing(STAGE, "bank.png") as path:
        save_bank(path, bank, facts.cluster_sizes)
    own_s = time.process_time() - cpu_started
    manifest = {
        "fingerprint": made_from,
        "data": source.facts(),
        "inputs": digest,
        **vars(facts),
        "patches_seen": found.seen,
        "images": found.images,
        "seconds": round(done - started, 2),
        "seconds_clustering": round(done - extracted, 2),
        "core_seconds": round(own_s + found.core_seconds + facts.actor_core_seconds, 2),
        "images_per_s": found.images / (done - started),
    }
    store.write_manifest(manifest, STAGE)
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    return "{k} parts of {patches:,} patches, objective {objective:.3f}".format_map(manifest)


def load_bank(experiment: Experiment, store: Store) -> PartBank:
    """The bank of a run whose stage has finished."""
    required(store, experiment, STAGE)
    with store.reading(STAGE, "bank.safetensors") as path:
        return PartBank.load(path)


def _cluster(experiment: Experiment, patches: NDArray[np.uint8]) -> tuple[PartBank, BankFacts]:
    """The bank, by FAISS on a GPU of the cluster if it may use one; where FAISS is built for CPUs, there."""
    scale, settings = experiment.scale, experiment.bank
    if experiment.init.has_parts:
        bank = source_parts(experiment)
        return bank, keep_bank(bank, patches)
    gpu = None if has_gpu(scale) else False
    if settings.shards > 1 and not scale.here:  # the actors hold the GPUs
        return _build(torch.device("cpu"), experiment, patches, gpu)
    (bank, facts), elsewhere = on_gpu(scale, STAGE, _build, experiment, patches, gpu)
    return bank, replace(facts, actor_core_seconds=facts.actor_core_seconds + elsewhere)


def _build(
    device: torch.device, experiment: Experiment, patches: NDArray[np.uint8], gpu: bool | None
) -> tuple[PartBank, BankFacts]:
    """FAISS looks for the GPU itself: it can have one where torch is built for CPUs, and the reverse."""
    return build_bank(patches, experiment.data.shape[0], experiment.bank, experiment.seed, gpu)


class Collected(NamedTuple):
    """A seeded sample (M, D) of `seen` patches of `images`, and CPU seconds of other processes for it."""

    patches: NDArray[np.uint8]
    seen: int
    images: int
    core_seconds: float


def _collect(experiment: Experiment, store: Store, source: Source) -> Collected:
    """Samples the patches of all shards, and writes rejects.jsonl. Raises UserError on too many rejects."""
    shards, total = list(enumerate(source.shards("train"))), source.count("train")
    rows = RejectLimit(experiment.data, [shard.split for _, shard in shards], total)
    sample, folders = Reservoir(experiment.bank.max_patches), source.inputs.folders()
    rejects: list[RejectLine] = []
    core_seconds = 0.0

    def read(some: Sequence[tuple[int, Shard]], above: int = -1, limit: int = ALL) -> bool:
        """Offers the patches with keys in a range. False, and no more is read, if too many rows are bad."""
        nonlocal core_seconds
        for result in map_items(some, partial(shard_patches, experiment, above, limit), folders=folders):
            core_seconds += result.core_seconds if ray_runs() else 0.0
            sample.add(result.drawn)
            if above < 0:
                rejects.extend(result.rejects)
                too_many = rows.add("train", result.images, len(result.rejects))
                show(rows.images)
                if too_many:
                    return False
        return True

    first = min(max(PILOT_IMAGES * len(shards) // max(total or 0, 1), 1), PILOT)
    step = len(shards) // first if len(shards) > 2 * first else 1
    pilot, others = shards[::step], [shard for shard in shards if shard[0] % step]
    with stage_progress(STAGE, total or 0) as show:
        if read(pilot) and others:
            # Only what may be in the sample leaves the other shards.
            limit = sample.limit(len(pilot) / len(shards))
            if read(others, limit=limit) and not sample.is_exact(limit):
                read(others, above=limit)
    write_rejects(store.filesystem, store.path(STAGE), rejects)
    check_rejects(rows.rejects, rows.rows, experiment.data)
    if rows.images == 0:
        data = experiment.data
        raise UserError(
            f"data.source {data.source} has no training image (data.fraction {data.fraction:g}); raise it"
        )
    return Collected(sample.result(), sample.seen, rows.images, core_seconds)


class ShardPatches(NamedTuple):
    """Patches of a shard, the images that were read, and the CPU seconds of the thread meanwhile."""

    drawn: Drawn
    images: int
    rejects: list[RejectLine]
    core_seconds: float


def shard_patches(experiment: Experiment, above: int, limit: int, item: tuple[int, Shard]) -> ShardPatches:
    """The patches of (number of a shard, shard) with keys above `above`, and at most `limit`.

    They count as seen if `above` is -1, which lets all pass.
    """
    index, shard = item
    cpu_started = time.thread_time()
    rows = shard.read()
    images = canvas_bytes(torch.from_numpy(rows.images), experiment.grid.downscale).numpy()
    patches = extract(images, experiment.canvas_grid, experiment.bank.min_energy)
    lines = reject_lines(rows.rejects, shard.name)
    drawn = draw(patches, index, experiment.seed, above, limit)
    if above >= 0:
        drawn = replace(drawn, seen=0)
    return ShardPatches(drawn, len(rows), lines, time.thread_time() - cpu_started)
