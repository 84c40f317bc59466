"""Stage `parse`: every image to its steps, by an actor pool over Ray Data, a Parquet file a shard.

Baselines train on images alone: their shards have no steps, and need no bank.

A shard is done once its sidecar in parses/.done/ is written, after the Parquet file itself was
renamed into place: a killed run takes up at the first shard that is not done, nothing twice.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import torch

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes, to_float
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.core.storage import list_files, read_bytes, write_text
from npdraw_dist.data.parses import write_parses
from npdraw_dist.data.shards import RejectLimit, Shard, check_rejects
from npdraw_dist.data.sources import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.measure.pictures import save_parse_preview
from npdraw_dist.parse.parser import Parser
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.rejects import drop, duplicates, write_rejects
from npdraw_dist.pipeline.store import Store, finished, required

STAGE, FOLDER, DONE = "parse", "parses", ".done"
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
    _start(store, made_from)
    source = open_source(experiment.data, experiment.seed)
    shards = [shard for split in SPLITS for shard in source.shards(split)]
    counts = [source.count(split) for split in SPLITS]
    total = None if None in counts else sum(count or 0 for count in counts)
    started = time.perf_counter()
    new = _parse_todo(experiment, store, bank, shards, total)
    _drop_duplicates(store, [shard.name for shard in shards])
    seconds = time.perf_counter() - started
    manifest = {
        "fingerprint": made_from,
        "data": source.facts(),
        **_totals(experiment, store, _sidecars(store)),
        "seconds": round(seconds, 2),
        "images_per_s": new / seconds,
    }
    if bank is not None:
        _preview(experiment, store, bank)
    store.write_json(manifest, FOLDER, "manifest.json")
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    numbers = format_metrics(manifest, "canvas_mse", "mean_parts")
    return numbers or f"{manifest['images']:,} images, no parts"


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


def _parse_todo(
    experiment: Experiment, store: Store, bank: PartBank | None, shards: list[Shard], total: int | None
) -> int:
    """Parses the shards without a sidecar; returns their images.

    Raises UserError as soon as it is clear that too many rows are bad, and after all others are parsed
    where a shard is unreadable as a whole; shards that are done stay.
    """
    done = _sidecars(store)
    limit = RejectLimit(experiment.data, shards, total)
    too_many = False
    for facts in done.values():
        too_many = limit.add(facts["split"], facts["images"], len(facts["rejects"]))
    todo = [] if too_many else [shard for shard in shards if shard.name not in done]
    new, errors, started = 0, [], time.perf_counter()
    with stage_progress(STAGE, total or 0) as show:
        for row in _parse_all(experiment, store, bank, todo):
            if row["error"]:
                errors.append(row["error"])
                continue
            too_many = limit.add(row["split"], row["images"], row["rejects"])
            new += row["images"]
            show(limit.rows - limit.rejects, new / (time.perf_counter() - started))
            if too_many:
                break
    if too_many:
        _write_rejects(store)
        check_rejects(limit.rejects, limit.rows, experiment.data)
    if errors:
        more = f" (and {len(errors) - 1} more shards failed)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; what is parsed stays, and the same command goes on")
    return new


def _drop_duplicates(store: Store, order: list[str]) -> None:
    """Keeps the image of an id that comes in several shards of a split in the first of these in `order`."""
    facts = _sidecars(store)
    for name, ids in duplicates(store, FOLDER, [facts[name] for name in order]).items():
        sidecar = store.path(FOLDER, DONE, f"{name}.json")
        store.filesystem.delete_file(sidecar)  # a run killed here parses the shard again
        text = json.dumps(drop(store, FOLDER, facts[name], ids))
        write_text(store.filesystem, sidecar, text)


def _parse_all(experiment: Experiment, store: Store, bank: PartBank | None, todo: list[Shard]) -> Any:
    """Runs the actor pool over the shards; yields each one's facts as it ends."""
    if not todo:
        return iter(())
    resources = ray.cluster_resources()
    gpu = experiment.scale.use_gpu is not False and resources.get("GPU", 0) >= 1
    slots = int(resources["GPU"] if gpu else resources["CPU"])
    shards = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo))
    dataset = shards.map(
        ParseShard,  # type: ignore[arg-type]  # Ray's hint knows functions only
        fn_constructor_args=(
            experiment.model_dump(mode="json"),
            None if bank is None else bank.parts.numpy(),
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
        settings, grid = self.experiment.parse, self.experiment.canvas_grid
        self.parser = None
        if parts is not None:
            bank = PartBank(torch.tensor(parts, device=self.device))
            self.parser = Parser(bank, grid, self.experiment.steps, settings.order, settings.min_gain)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard: Shard = row["shard"]
        started = time.perf_counter()
        try:
            rows = shard.read()
        except UserError as error:  # so that the other shards are parsed all the same
            return {"split": shard.split, "images": 0, "rejects": 0, "error": str(error)}
        sequences, errors = self.parse(rows.images)
        path = self.store.path(FOLDER, shard.split, f"{shard.name}.parquet")
        if len(rows):
            write_parses(path, self.store.filesystem, rows.ids, rows.images, rows.labels, sequences, errors)
        facts = {
            "shard": shard.name,
            "split": shard.split,
            "images": len(rows),
            "squared_error": float(errors.sum(dtype=np.float64)),
            "parts": 0 if sequences is None else int(sequences.whether.sum()),
            "rejects": [{"id": reject.id, "reason": reject.reason} for reject in rows.rejects],
            "seconds": time.perf_counter() - started,
        }
        write_text(
            self.store.filesystem, self.store.path(FOLDER, DONE, f"{shard.name}.json"), json.dumps(facts)
        )
        return {"split": shard.split, "images": len(rows), "rejects": len(rows.rejects), "error": ""}

    def parse(self, images: Any) -> tuple[PartSequence | None, Any]:
        """uint8 images (N, C, H, W) -> z (N, T) and mean squared error of the canvas (N,)."""
        if self.parser is None:
            return None, np.zeros(len(images), np.float32)
        batch, downscale = self.experiment.parse.batch_size, self.experiment.grid.downscale
        found = []
        for start in range(0, len(images), batch):
            part = canvas_bytes(images[start : start + batch], downscale)
            found.append(self.parser(torch.from_numpy(part).to(self.device)))
        steps = self.experiment.steps
        if not found:
            empty = torch.zeros(0, steps, dtype=torch.int64)
            return PartSequence(empty.bool(), empty, empty), np.zeros(0, np.float32)
        z = PartSequence.cat([parse.z for parse in found]).to("cpu")
        return z, torch.cat([parse.squared_error for parse in found]).cpu().numpy()


def _write_rejects(store: Store) -> int:
    """Writes rejects.jsonl of the shards that are done; returns the number of rejects."""
    rejects = [
        {**reject, "shard": name} for name, facts in _sidecars(store).items() for reject in facts["rejects"]
    ]
    write_rejects(store, FOLDER, rejects)
    return len(rejects)


def _totals(experiment: Experiment, store: Store, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The sums over shards; writes rejects.jsonl and refuses too many."""
    images = sum(item["images"] for item in facts.values())
    rejects = _write_rejects(store)
    check_rejects(rejects, images + rejects, experiment.data)
    parts = {
        "canvas_mse": sum(item["squared_error"] for item in facts.values()) / max(images, 1),
        "mean_parts": sum(item["parts"] for item in facts.values()) / max(images, 1),
    }
    return {
        "images": images,
        "splits": {s: sum(item["images"] for item in facts.values() if item["split"] == s) for s in SPLITS},
        **(parts if "bank" in experiment.stage_names else {}),
        "rejects": rejects,
        "actor_seconds": round(sum(item["seconds"] for item in facts.values()), 2),
    }


def _preview(experiment: Experiment, store: Store, bank: PartBank) -> None:
    """preview.png of the first 16 training images."""
    head = store.parses("train").read(0, 16)
    small = to_float(canvas_bytes(head.images.numpy(), experiment.grid.downscale))
    with store.writing(FOLDER, "preview.png") as path:
        save_parse_preview(path, small, render(bank.parts, head.z, experiment.canvas_grid))
