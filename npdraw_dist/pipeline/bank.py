"""Stage `bank`: clusters patches of training images; the patch nearest to each centroid becomes a part."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.bank.build import BankFacts, Open, build_bank, keep_bank
from npdraw_dist.bank.patches import ALL, Drawn, Reservoir, draw, extract
from npdraw_dist.bank.search import faiss_is_for_gpus
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import PartBank
from npdraw_dist.data.shards import Canonical, ShardReader
from npdraw_dist.distributed.actors import Actors, has_gpu, on_gpu
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import grouped, map_items
from npdraw_dist.pipeline.pictures import save_bank
from npdraw_dist.pipeline.progress import Show, stage_progress
from npdraw_dist.pipeline.stage import Stage
from npdraw_dist.pipeline.store import Store, fingerprint_of, finished, required
from npdraw_dist.pipeline.trained_models import source_parts

NAME = "bank"
# The first pass over the shards reads PILOT to 2 * PILOT of them, or fewer if these have PILOT_IMAGES images.
PILOT, PILOT_IMAGES = 16, 100_000
# More shards are not read if this many have ENOUGH_PATCHES for each patch of the sample.
ENOUGH_SHARDS, ENOUGH_PATCHES = 4096, 8
Numbered = tuple[int, tuple[str, int]]  # a shard's number, its file, and the file's bytes


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Builds bank/ from the training split; returns its manifest."""
    if (manifest := finished(store, experiment, NAME)) is not None:
        return manifest
    made_from = fingerprint_of(experiment, NAME)
    started, cpu_started = time.perf_counter(), time.process_time()
    shards = store.shards()
    found = _collect(experiment, shards)
    extracted = time.perf_counter()
    bank, facts = _cluster(experiment, found.patches)
    ended = time.perf_counter()
    with store.writing(NAME, "bank.safetensors") as path:
        bank.save(path, {"fingerprint": made_from})
    with store.writing(NAME, "bank.png") as path:
        save_bank(path, bank, facts.cluster_sizes)
    own_s = time.process_time() - cpu_started
    manifest = {
        "fingerprint": made_from,
        "images_digest": shards.manifest.digests["train"],
        **vars(facts),
        "patches_seen": found.seen,
        "images": found.images,
        "seconds": round(ended - started, 2),
        "seconds_clustering": round(ended - extracted, 2),
        "core_seconds": round(own_s + found.core_seconds + facts.actor_core_seconds, 2),
        "images_per_s": found.images / (ended - started),
    }
    store.write_manifest(manifest, NAME)
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """Formats the stage's numbers for the table at the end of a run."""
    return "{k} parts of {patches:,} patches, objective {objective:.3f}".format_map(manifest)


def load_bank(experiment: Experiment, store: Store) -> PartBank:
    """Loads the bank of a run. Raises UserError if the stage `bank` has not finished."""
    required(store, experiment, NAME)
    with store.reading(NAME, "bank.safetensors") as path:
        return PartBank.load(path)


def _cluster(experiment: Experiment, patches: NDArray[np.uint8]) -> tuple[PartBank, BankFacts]:
    """Clusters with FAISS, on a GPU of the cluster if the run may use one and FAISS is built for GPUs.

    No GPU is requested from an autoscaler, since it would idle until training.
    """
    scale, settings = experiment.scale, experiment.bank
    if experiment.init.has_parts:
        bank = source_parts(experiment)
        return bank, keep_bank(bank, patches)
    gpu = None if has_gpu(scale) and faiss_is_for_gpus() else False
    if gpu is False or (settings.shards > 1 and not scale.in_process):  # the shards' actors hold GPUs
        return _build(torch.device("cpu"), experiment, patches, gpu)
    (bank, facts), elsewhere = on_gpu(scale, NAME, _build, experiment, patches, gpu)
    return bank, replace(facts, actor_core_seconds=facts.actor_core_seconds + elsewhere)


def _build(
    device: torch.device, experiment: Experiment, patches: NDArray[np.uint8], gpu: bool | None
) -> tuple[PartBank, BankFacts]:
    """Builds the bank. Ignores `device`, since FAISS may find a GPU that torch does not, or the reverse."""
    return build_bank(patches, experiment.data.shape[0], experiment.bank, experiment.seed, gpu, _others())


def _others() -> Open | None:
    return Actors if ray_runs() else None


class Collected(NamedTuple):
    """A seeded sample (M, D) of the `seen` patches of `images`, and the CPU seconds of other processes."""

    patches: NDArray[np.uint8]
    seen: int
    images: int
    core_seconds: float


def _collect(experiment: Experiment, shards: Canonical) -> Collected:
    """Draws a uniform sample of at most `bank.max_patches` patches of the shards of `_read_files`."""
    files, total = _read_files(experiment, shards)
    sample, core_seconds, images = Reservoir(experiment.bank.max_patches), 0.0, 0
    show: Show

    def read(some: Sequence[Numbered], above: int = -1, limit: int = ALL) -> None:
        """Adds the patches of some shards whose keys (see `draw`) are in (above, limit] to the sample."""
        nonlocal core_seconds, images
        work = partial(some_patches, partial(shard_patches, experiment, shards.reader, above, limit))
        for result in chain.from_iterable(map_items(grouped(some), work)):
            core_seconds += result.core_seconds if ray_runs() else 0.0
            sample.add(result.drawn)
            if above < 0:
                images += result.images
                show(images)

    first = min(max(PILOT_IMAGES * len(files) // max(total, 1), 1), PILOT)
    step = len(files) // first if len(files) > 2 * first else 1
    pilot, others = files[::step], [file for n, file in enumerate(files) if n % step]
    with stage_progress(NAME, total) as show:
        read(pilot)
        if others:
            # With the limit, workers send only patches that may be in the sample.
            limit = sample.limit(len(pilot) / len(files))
            read(others, limit=limit)
            if not sample.is_exact(limit):
                read(others, above=limit)
    return Collected(sample.result(), sample.seen, images, core_seconds)


def _read_files(experiment: Experiment, shards: Canonical) -> tuple[list[Numbered], int]:
    """The training shards to read, which the seed chooses if there are very many, and their number of images.

    A terabyte of images need not be read for a gigabyte of patches.
    """
    rows, sizes = shards.manifest.files["train"], shards.manifest.sizes
    places = sum(rows.values()) * experiment.canvas_grid.places
    enough = -(-ENOUGH_PATCHES * experiment.bank.max_patches * len(rows) // max(places, 1))
    files, most = list(rows), max(ENOUGH_SHARDS, enough)
    numbers = np.arange(len(files))
    if len(files) > most:
        numbers = np.sort(np.random.default_rng(experiment.seed).choice(len(files), most, replace=False))
    chosen = [(n, (files[n], sizes[files[n]])) for n in numbers.tolist()]
    return chosen, sum(rows[file] for _, (file, _) in chosen)


class ShardPatches(NamedTuple):
    """Patches drawn from a shard, its number of images, and the CPU seconds for reading and drawing."""

    drawn: Drawn
    images: int
    core_seconds: float


def some_patches(work: Callable[[Numbered], ShardPatches], items: Sequence[Numbered]) -> list[ShardPatches]:
    return [work(item) for item in items]


def shard_patches(
    experiment: Experiment, read: ShardReader, above: int, limit: int, item: Numbered
) -> ShardPatches:
    """Draws the patches of a shard whose keys are in (above, limit].

    If `above` is at least 0, the shard is read for the second time, so its patches are not counted again.
    """
    index, file = item
    cpu_started = time.thread_time()
    rows = read(file)
    images = canvas_bytes(torch.tensor(rows.images), experiment.grid.downscale).numpy()
    patches = extract(images, experiment.canvas_grid, experiment.bank.min_energy)
    drawn = draw(patches, index, experiment.seed, above, limit)
    if above >= 0:
        drawn = replace(drawn, seen=0)
    return ShardPatches(drawn, len(rows), time.thread_time() - cpu_started)


def done(experiment: Experiment, store: Store) -> dict[str, Any] | None:
    return finished(store, experiment, NAME)


STAGE = Stage(NAME, ("data",), done, run, describe, ("bank/bank.png",))
