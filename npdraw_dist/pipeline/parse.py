"""Stage `parse`: every image to its steps, by a pool of actors, one Parquet file a shard.

Baselines train on images alone: their shards have no steps and need no bank.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import canvas_bytes, to_float
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.data.map_shards import Actors
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import Encoded, ShardFolder, ShardWriter, Written, write_shards
from npdraw_dist.data.shards import count_all
from npdraw_dist.data.sources import open_source
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.measure.pictures import save_parse_preview
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.store import Store, finished, required

STAGE, FOLDER = "parse", "parses"
PICTURES = ("parses/preview.png",)


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Parses all splits into parses/<split>/<shard>.parquet; returns the manifest."""
    made_from = of_stage(experiment, STAGE)
    with_parts = "bank" in experiment.stage_names
    if with_parts:
        required(store, "bank", of_stage(experiment, "bank"), STAGE)
    if (manifest := finished(store, FOLDER, made_from)) is not None:
        return manifest
    bank = None
    if with_parts:
        with store.reading("bank", "bank.safetensors") as path:
            bank = PartBank.load(path)
    folder = ShardFolder(store.filesystem, store.path(FOLDER), made_from)
    if folder.owner() != made_from:
        store.remove(FOLDER)
    folder.claim()
    source = open_source(experiment.data, experiment.seed)
    writer = ShardWriter(folder, ParseEncoder(experiment, None if bank is None else bank.parts.numpy()))
    gpu = experiment.scale.use_gpu is not False and ray.cluster_resources().get("GPU", 0) >= 1
    started = time.perf_counter()
    with stage_progress(STAGE, count_all(source) or 0) as show:
        written = write_shards(writer, source, experiment.data, show, Actors(gpu))
    seconds = time.perf_counter() - started
    manifest = {
        "fingerprint": made_from,
        "data": source.facts(),
        **_totals(written, with_parts),
        "seconds": round(seconds, 2),
        "images_per_s": written.new / seconds,
    }
    if bank is not None:
        _preview(experiment, store, bank)
    store.write_manifest(manifest, FOLDER)
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    numbers = format_metrics(manifest, "canvas_mse", "mean_parts")
    return numbers or f"{manifest['images']:,} images, no parts"


@dataclass(frozen=True)
class ParseEncoder:
    """Parses the images of a shard. parts: of the bank, (K, C, P, P); None for a baseline."""

    experiment: Experiment
    parts: NDArray[np.float32] | None

    suffix = "parquet"

    def __call__(self, rows: Rows) -> Encoded:
        if self.parts is None:
            return Encoded(to_parquet(rows))
        z, squared_error = self.parse(rows.images)
        numbers = {
            "squared_error": float(squared_error.sum(dtype=np.float64)),
            "parts": int(z.whether.sum()),
        }
        return Encoded(to_parquet(rows, z, squared_error), numbers)

    @cached_property
    def parser(self) -> Parser:
        """Made once on each actor, on the GPU that the actor holds, if any."""
        device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(1)  # an actor holds one CPU
        settings = self.experiment.parse
        bank = PartBank(torch.tensor(self.parts, device=device))
        grid = self.experiment.canvas_grid
        return Parser(bank, grid, self.experiment.steps, settings.order, settings.min_gain)

    def parse(self, images: NDArray[np.uint8]) -> tuple[PartSequence, NDArray[np.float32]]:
        """uint8 images (N, C, H, W), N > 0 -> z (N, T) and mean squared error of the canvas (N,)."""
        batch, downscale = self.experiment.parse.batch_size, self.experiment.grid.downscale
        found = []
        for start in range(0, len(images), batch):
            canvases = canvas_bytes(images[start : start + batch], downscale)
            found.append(self.parser(torch.from_numpy(canvases).to(self.parser.bank.parts.device)))
        z = PartSequence.cat([parse.z for parse in found]).to("cpu")
        return z, torch.cat([parse.squared_error for parse in found]).cpu().numpy()


def _totals(written: Written, with_parts: bool) -> dict[str, Any]:
    """The manifest's sums over shards."""
    in_order = sorted(written.shards, key=lambda facts: facts.shard)
    means = {
        name: sum(facts.numbers.get(key, 0) for facts in in_order) / max(written.images, 1)
        for name, key in (("canvas_mse", "squared_error"), ("mean_parts", "parts"))
    }
    return {
        "images": written.images,
        "splits": written.splits,
        **(means if with_parts else {}),
        "rejects": written.rejects,
        "actor_seconds": round(sum(facts.seconds for facts in in_order), 2),
    }


def _preview(experiment: Experiment, store: Store, bank: PartBank) -> None:
    """preview.png of the first 16 training images."""
    head = store.parses("train").read(0, 16)
    small = to_float(canvas_bytes(head.images.numpy(), experiment.grid.downscale))
    with store.writing(FOLDER, "preview.png") as path:
        save_parse_preview(path, small, render(bank.parts, head.z, experiment.canvas_grid))
