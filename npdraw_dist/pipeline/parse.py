"""Stage `parse`: a pool of actors parses images into steps and writes a Parquet file per shard."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import canvas_bytes, to_float
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.data.parquet import parses_to_parquet, rows_a_group
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.shard_folder import ShardFacts, ShardFolder
from npdraw_dist.data.shards import Canonical, ShardReader
from npdraw_dist.data.splits import Split
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import Pool, grouped, map_items
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline import data
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.data import Costs, needed_splits
from npdraw_dist.pipeline.pictures import save_parse_preview
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.stage import Stage
from npdraw_dist.pipeline.store import Store, fingerprint_of, finished

NAME, FOLDER = "parse", "parses"
AT_ONCE = 512  # number of images that the parser takes in a batch
SHOWN = 16  # training images in preview.png
Item = tuple[Split, str, int]  # a shard's split, its file below the root of the images, and the file's bytes


def done(experiment: Experiment, store: Store) -> dict[str, Any] | None:
    """The manifest of the stage; None if it has not finished, or not for all splits that the run reads."""
    return data.done(experiment, store, NAME)


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Parses the splits that the run needs into parses/<split>/<shard>.parquet; returns the manifest."""
    if (manifest := done(experiment, store)) is not None:
        return manifest
    before = finished(store, experiment, NAME)  # an earlier command may have parsed other splits
    bank, shards = load_bank(experiment, store), store.shards()
    costs = Costs(before)
    written, new, driver_s = _write(experiment, store, shards, bank)
    numbers = costs.numbers(new, driver_s, sum(facts.core_seconds for facts in written))
    splits = {split: shards.manifest.splits.get(split, 0) for split in needed_splits(experiment)}
    images = sum(splits.values())
    sums = {"canvas_mse": "squared_error", "mean_parts": "parts"}
    manifest = {
        "fingerprint": fingerprint_of(experiment, NAME),
        "images_digest": shards.manifest.digests["train"],
        "images": images,
        "splits": splits,
        **{name: sum(facts.numbers[key] for facts in written) / max(images, 1) for name, key in sums.items()},
        "actor_seconds": round(sum(facts.seconds for facts in written), 2),
        **numbers,
    }
    parses = Parses.of_split(shards, "train", (store.filesystem, store.path(FOLDER)))
    head = parses.at(np.arange(min(SHOWN, len(parses))))
    small = to_float(canvas_bytes(head.images, experiment.grid.downscale))
    with store.writing(FOLDER, "preview.png") as path:
        save_parse_preview(path, small, render(bank.parts, head.z, experiment.canvas_grid))
    store.write_manifest(manifest, FOLDER)
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """Formats the stage's numbers for the table at the end of a run."""
    return format_metrics(manifest, "canvas_mse", "mean_parts")


@dataclass(frozen=True)
class ParseWriter:
    """Parses the images of shards and writes the parses. parts: the bank's parts (K, C, P, P)."""

    experiment: Experiment
    read: ShardReader
    folder: ShardFolder
    parts: NDArray[np.float32]

    def __call__(self, items: Sequence[Item]) -> list[ShardFacts]:
        """Parses some shards, which get one sidecar, since each request to a store has a price."""
        found = [self._write(*item) for item in items]
        self.folder.finish(found)
        return found

    def _write(self, split: Split, file: str, size: int) -> ShardFacts:
        started, cpu_started = time.perf_counter(), time.thread_time()
        rows = self.read((file, size))
        z, squared_error = self.parse(rows.images)
        content = parses_to_parquet(rows.ids, z, squared_error, rows_a_group(rows.images.shape[1:]))
        facts = ShardFacts(
            shard=file.rpartition("/")[2].rpartition(".")[0],
            split=split,
            file=file,
            rows=len(rows),
            bytes=len(content),
            numbers={
                "squared_error": float(squared_error.sum(dtype=np.float64)),
                "parts": int(z.whether.sum()),
            },
            seconds=time.perf_counter() - started,
            core_seconds=time.thread_time() - cpu_started,
        )
        return self.folder.write(facts, content)

    @cached_property
    def parser(self) -> Parser:
        """The actor's parser, made once. It uses a CPU, since reading and writing take most of the time."""
        if ray_runs():
            torch.set_num_threads(1)  # an actor reserves one CPU
        return Parser.of(self.experiment, PartBank(torch.tensor(self.parts)))

    def parse(self, images: NDArray[np.uint8]) -> tuple[PartSequence, NDArray[np.float32]]:
        """uint8 images (N, C, H, W), N > 0 -> z (N, T), and the mean squared error of each canvas (N,)."""
        canvases = canvas_bytes(torch.tensor(images), self.experiment.grid.downscale)
        found = [self.parser(some) for some in canvases.split(AT_ONCE)]
        z = PartSequence.cat([parse.z for parse in found])
        return z, torch.cat([parse.squared_error for parse in found]).numpy()


def _write(
    experiment: Experiment, store: Store, shards: Canonical, bank: PartBank
) -> tuple[list[ShardFacts], int, float]:
    """Parses the shards that have no parses yet.

    Returns the facts of all shards, the number of images parsed now, and the CPU seconds of this process.
    """
    made_from = f"{fingerprint_of(experiment, NAME)}/{shards.manifest.digests['train']}"
    folder = ShardFolder(store.filesystem, store.path(FOLDER), made_from)
    folder.claim()
    files = [(s, file) for s in needed_splits(experiment) for file in shards.manifest.files.get(s, ())]
    written = {facts.file: facts for facts in folder.done().values()}
    todo = [(split, file, shards.manifest.sizes[file]) for split, file in files if file not in written]
    total = sum(shards.manifest.splits.get(split, 0) for split in needed_splits(experiment))
    writer = ParseWriter(experiment, shards.reader, folder, bank.parts.numpy())
    new, driver_s, started = 0, 0.0, time.perf_counter()
    with stage_progress(NAME, total) as show:
        images = sum(written[file].rows for _, file in files if file in written)
        for found in map_items(grouped(todo), writer, Pool(), [folder.landmarks()]):
            for facts in found:
                written[facts.file] = facts
                new += facts.rows
                driver_s += 0.0 if ray_runs() else facts.core_seconds
            show(images + new, new / (time.perf_counter() - started))
    return [written[file] for _, file in files], new, driver_s


STAGE = Stage(NAME, ("data", "bank"), done, run, describe, ("parses/preview.png",))
