"""Stage `parse`: every image to its steps, by a pool of actors, one Parquet file a shard.

Baselines train on images alone: their shards have no steps and need no bank.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import canvas_bytes, to_float
from npdraw_dist.core.pages import save_parse_preview
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.core.vocabulary import MOST_CLASSES, learned, words_in
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.parses import write_list
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import Encoded, ShardFolder, ShardWriter, Written, write_shards
from npdraw_dist.data.shards import DataChanged, Source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import Pool
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline import inputs
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.store import VOCABULARY, Store, fingerprint_of, finished

STAGE, FOLDER = "parse", "parses"
PICTURES = ("parses/preview.png",)
AT_ONCE = 512  # images that the parser is given together
MOST_TEXTS = 1 << 20  # images whose words are counted


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Parses the splits that the run reads into parses/<split>/<shard>.parquet; returns the manifest."""
    bank = load_bank(experiment, store) if "bank" in experiment.stage_names else None
    before = finished(store, experiment, STAGE)  # an earlier command can have parsed other splits
    if before is not None and has_splits(before, experiment):
        return before
    encoder = ParseEncoder(experiment, None if bank is None else bank.parts.numpy())
    if "test" in needed_splits(experiment):
        store.record_opening(STAGE)
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        with inputs.reading(experiment, store, STAGE) as (source, digest):
            written = _write(experiment, store, source, digest, encoder)
    except DataChanged:
        store.remove(FOLDER)  # which shards were read before the change is not known
        raise
    seconds = time.perf_counter() - started
    files: dict[str, dict[str, int]] = {split: {} for split in written.of}
    for facts in written.shards:
        if facts.file is not None:
            files[facts.split][facts.file] = facts.rows
    write_list(store.filesystem, store.path(FOLDER), files)
    store.write_json(_vocabulary(source, written, store), FOLDER, VOCABULARY)
    if bank is not None:  # preview.png of the first 16 training images
        parses = store.parses("train")
        head = parses.at(np.arange(min(16, len(parses))))
        small = to_float(canvas_bytes(head.images, experiment.grid.downscale))
        with store.writing(FOLDER, "preview.png") as path:
            save_parse_preview(path, small, render(bank.parts, head.z, experiment.canvas_grid))
    actors = sum(facts.core_seconds for facts in written.shards)  # of earlier calls too
    drivers = time.process_time() - cpu_started - written.here_s
    if before is not None:
        drivers += before["core_seconds"] - before["actor_core_seconds"]
    in_order = sorted(written.shards, key=lambda facts: facts.shard)
    sums = {"canvas_mse": "squared_error", "mean_parts": "parts"} if bank is not None else {}
    manifest = {
        "fingerprint": fingerprint_of(experiment, STAGE),
        "data": source.facts(),
        "inputs": digest,
        "images": written.images,
        "splits": written.splits,
        **{
            name: sum(facts.numbers.get(key, 0) for facts in in_order) / max(written.images, 1)
            for name, key in sums.items()
        },
        "rejects": written.rejects,
        "left_out": written.left_out,
        "actor_seconds": round(sum(facts.seconds for facts in in_order), 2),
        "seconds": round(seconds + (before or {}).get("seconds", 0.0), 2),
        "images_per_s": written.new / seconds,
        "core_seconds": round(drivers + actors, 2),
        "actor_core_seconds": round(actors, 2),
    }
    store.write_manifest(manifest, FOLDER)
    return manifest


def _vocabulary(source: Source, written: Written, store: Store) -> dict[str, list[str]]:
    """What conditions can name: `classes`, by the source or by number, and `words`.

    Numbers and words are those of the training images: a later command may parse the test split too, and the
    model has the vocabulary that it was trained with.
    """
    known = source.facts()["classes"]
    trained = [facts.numbers for facts in written.shards if facts.split == "train"]
    count = int(max((numbers.get("classes", 0) for numbers in trained), default=0))
    counts = Counter[str]()
    with_words = any(numbers.get("texts") for numbers in trained)  # else no file is opened
    for texts in store.parses("train").texts(MOST_TEXTS if with_words else 0):
        for text in texts:
            counts.update(words_in(text))
    numbered = map(str, range(count)) if count <= MOST_CLASSES else ()
    return {"classes": known or list(numbered), "words": list(learned(counts))}


def needed_splits(experiment: Experiment) -> tuple[Split, ...]:
    """The splits that a run reads: the test split only if its final numbers are of that split."""
    return SPLITS if experiment.eval.split == "test" else ("train", "valid")


def has_splits(manifest: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the finished stage parsed all splits that the run reads."""
    return set(manifest.get("splits", SPLITS)) >= set(needed_splits(experiment))


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    numbers = format_metrics(manifest, "canvas_mse", "mean_parts")
    return numbers or f"{manifest['images']:,} images, no parts"


@dataclass(frozen=True)
class ParseEncoder:
    """Parses the images of a shard. parts: of the bank, (K, C, P, P); None for a baseline."""

    experiment: Experiment
    parts: NDArray[np.float32] | None

    def __call__(self, rows: Rows) -> Encoded:
        told = {"classes": int(rows.known_labels().max(initial=-1)) + 1, "texts": len(rows.words or ())}
        if self.parts is None:
            return Encoded(to_parquet(rows), told)
        z, squared_error = self.parse(rows.images)
        numbers = {
            "squared_error": float(squared_error.sum(dtype=np.float64)),
            "parts": int(z.whether.sum()),
            **told,
        }
        return Encoded(to_parquet(rows, z, squared_error), numbers)

    @cached_property
    def parser(self) -> Parser:
        """Made once on each actor, on a CPU: most of an image's time is spent reading and writing it."""
        if ray_runs():
            torch.set_num_threads(1)  # an actor holds one CPU
        return Parser.of(self.experiment, PartBank(torch.tensor(self.parts)))

    def parse(self, images: NDArray[np.uint8]) -> tuple[PartSequence, NDArray[np.float32]]:
        """uint8 images (N, C, H, W), N > 0 -> z (N, T) and mean squared error of the canvas (N,)."""
        canvases = canvas_bytes(torch.from_numpy(images), self.experiment.grid.downscale)
        found = [self.parser(some) for some in canvases.split(AT_ONCE)]
        z = PartSequence.cat([parse.z for parse in found])
        return z, torch.cat([parse.squared_error for parse in found]).numpy()


def _write(
    experiment: Experiment, store: Store, source: Source, digest: str, encoder: ParseEncoder
) -> Written:
    """Parses the shards that are not done for these data."""
    made_from = fingerprint_of(experiment, STAGE)
    folder = ShardFolder(store.filesystem, store.path(FOLDER), f"{made_from}/{digest}")
    if folder.owner() != folder.made_from:
        store.remove(FOLDER)
    folder.claim()
    # Data are often sorted, such as by font, and a stream mixes only what it reads together.
    splits, writer = needed_splits(experiment), ShardWriter(folder, encoder, mixed=experiment.seed)
    with stage_progress(STAGE, source.count(*splits) or 0) as show:
        return write_shards(writer, source, experiment.data, show, Pool(), splits)
