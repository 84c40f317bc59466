"""Stage `parse`: every image to its steps, by an actor pool over Ray Data, a Parquet file a shard.

A shard is done once its sidecar in parses/.done/ is written, after the Parquet file itself was
renamed into place: a killed run takes up at the first shard that is not done, nothing twice.
"""

import json
import time
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import torch

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import canvas_bytes, to_float
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.core.storage import list_files, read_bytes, write_text
from npdraw_dist.data.parses import to_columns, write_parses
from npdraw_dist.data.shards import Shard, check_rejects
from npdraw_dist.data.sources import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.measure.pictures import save_parse_preview
from npdraw_dist.parse.parser import Parser
from npdraw_dist.stages.fingerprints import of_stage
from npdraw_dist.stages.progress import stage_progress
from npdraw_dist.stages.store import Store, finished, required

STAGE, FOLDER, DONE = "parse", "parses", ".done"


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Parses all splits into parses/<split>/<shard>.parquet; returns the manifest."""
    made_from = of_stage(experiment, STAGE)
    required(store, "bank", of_stage(experiment, "bank"), STAGE)
    if (manifest := finished(store, FOLDER, made_from)) is not None:
        return manifest
    with store.reading("bank", "bank.safetensors") as path:
        bank = PartBank.load(path)
    _start(store, made_from)
    source = open_source(experiment.data, experiment.seed)
    shards = [shard for split in SPLITS for shard in source.shards(split)]
    started = time.perf_counter()
    done = _sidecars(store)
    todo = [shard for shard in shards if shard.name not in done]
    total = sum(source.count(split) or 0 for split in SPLITS)
    with stage_progress(STAGE, total) as show:
        images = sum(facts["images"] for facts in done.values())
        for row in _parse_all(experiment, store, bank, todo):
            images += row["images"]
            show(images, images / (time.perf_counter() - started))
    seconds = time.perf_counter() - started
    facts = _sidecars(store)
    new = sum(facts[shard.name]["images"] for shard in todo)
    manifest = {
        "fingerprint": made_from,
        "data": source.facts(),
        **_totals(experiment, store, facts),
        "seconds": round(seconds, 2),
        "images_per_s": new / seconds,
    }
    _preview(experiment, store, bank)
    store.write_json(manifest, FOLDER, "manifest.json")
    return manifest


def _start(store: Store, made_from: str) -> None:
    """Marks whose shards these are, so that a resumed run never mixes two configs."""
    if store.has(FOLDER, "started.json"):
        if store.read_json(FOLDER, "started.json")["fingerprint"] == made_from:
            return
        store.remove(FOLDER)
    store.make_folder(FOLDER, DONE)
    store.write_json({"fingerprint": made_from}, FOLDER, "started.json")


def _sidecars(store: Store) -> dict[str, dict[str, Any]]:
    """shard name -> facts, of all that are done."""
    files = list_files(store.filesystem, store.path(FOLDER, DONE))
    facts = [json.loads(read_bytes(store.filesystem, path)) for path, _ in files if path.endswith(".json")]
    return {item["shard"]: item for item in facts}


def _parse_all(experiment: Experiment, store: Store, bank: PartBank, todo: list[Shard]) -> Any:
    """Runs the actor pool over the shards; yields each one's facts as it ends."""
    if not todo:
        return iter(())
    resources = ray.cluster_resources()
    gpu = experiment.scale.use_gpu is not False and resources.get("GPU", 0) >= 1
    slots = int(resources["GPU"] if gpu else resources["CPU"])
    dataset = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo))
    dataset = dataset.map(
        ParseShard,
        fn_constructor_args=(
            experiment.model_dump(mode="json"),
            bank.parts.numpy(),
            store.filesystem,
            store.root,
        ),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(min(slots, len(todo)), 1)),
        num_cpus=1,
        num_gpus=1 if gpu else 0,
    )
    return dataset.iter_rows()


class ParseShard:
    """One actor: reads a shard, parses it, writes its Parquet file, then its sidecar."""

    def __init__(
        self, experiment: dict[str, Any], parts: Any, filesystem: pyarrow.fs.FileSystem, root: str
    ) -> None:
        self.experiment = Experiment.model_validate(experiment)
        self.store = Store(filesystem, root)
        self.device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # an actor holds one CPU
        settings = self.experiment.parse
        bank = PartBank(torch.tensor(parts, device=self.device))
        self.parser = Parser(
            bank, self.experiment.canvas_grid, self.experiment.steps, settings.order, settings.min_gain
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard: Shard = row["shard"]
        started = time.perf_counter()
        rows = shard.read()
        sequences, errors = self.parse(rows.images)
        path = self.store.path(FOLDER, shard.split, f"{shard.name}.parquet")
        if len(rows):
            write_parses(path, self.store.filesystem, rows.ids, rows.images, rows.labels, sequences, errors)
        facts = {
            "shard": shard.name,
            "split": shard.split,
            "images": len(rows),
            "squared_error": float(errors.sum(dtype=np.float64)),
            "parts": int(sequences.whether.sum()),
            "rejects": [{"id": reject.id, "reason": reject.reason} for reject in rows.rejects],
            "seconds": time.perf_counter() - started,
        }
        write_text(
            self.store.filesystem, self.store.path(FOLDER, DONE, f"{shard.name}.json"), json.dumps(facts)
        )
        return {"images": len(rows)}

    def parse(self, images: Any) -> tuple[PartSequence, Any]:
        """uint8 images (N, C, H, W) -> z (N, T) and mean squared error of the canvas (N,)."""
        batch, downscale = self.experiment.parse.batch_size, self.experiment.grid.downscale
        found = []
        for start in range(0, len(images), batch):
            part = canvas_bytes(images[start : start + batch], downscale)
            found.append(self.parser(to_float(part).to(self.device)))
        steps = self.experiment.steps
        if not found:
            empty = torch.zeros(0, steps, dtype=torch.int64)
            return PartSequence(empty.bool(), empty, empty), np.zeros(0, np.float32)
        z = PartSequence.cat([parse.z for parse in found]).to("cpu")
        return z, torch.cat([parse.squared_error for parse in found]).cpu().numpy()


def _totals(experiment: Experiment, store: Store, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The sums over shards; writes rejects.jsonl and refuses too many."""
    rejects = [
        {**reject, "shard": name} for name, item in sorted(facts.items()) for reject in item["rejects"]
    ]
    images = sum(item["images"] for item in facts.values())
    if rejects:
        text = "".join(json.dumps(reject) + "\n" for reject in rejects)
        write_text(store.filesystem, store.path(FOLDER, "rejects.jsonl"), text)
    check_rejects(len(rejects), images + len(rejects), experiment.data)
    return {
        "images": images,
        "splits": {s: sum(item["images"] for item in facts.values() if item["split"] == s) for s in SPLITS},
        "canvas_mse": sum(item["squared_error"] for item in facts.values()) / max(images, 1),
        "mean_parts": sum(item["parts"] for item in facts.values()) / max(images, 1),
        "rejects": len(rejects),
        "actor_seconds": round(sum(item["seconds"] for item in facts.values()), 2),
    }


def _preview(experiment: Experiment, store: Store, bank: PartBank) -> None:
    """preview.png of the first 16 training images."""
    dataset = ray.data.read_parquet(store.path(FOLDER, "train"), filesystem=store.filesystem)
    images, z = to_columns(next(iter(dataset.limit(16).iter_batches(batch_size=16, batch_format="numpy"))))
    small = to_float(canvas_bytes(images, experiment.grid.downscale))
    with store.writing(FOLDER, "preview.png") as path:
        save_parse_preview(path, small, render(bank.parts, z, experiment.canvas_grid))
