"""Stage `bank`: patches of the training images by Ray Data, clustered by FAISS, snapped to real ones."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import faiss
import numpy as np
import ray
from numpy.typing import NDArray

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import Reservoir, extract
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import PartBank
from npdraw_dist.data.shards import RejectLimit, Shard, check_rejects
from npdraw_dist.data.sources import open_source
from npdraw_dist.measure.pictures import save_bank
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.rejects import listed, write_rejects
from npdraw_dist.pipeline.store import Store, finished, required

STAGE = "bank"
PICTURES = ("bank/bank.png",)


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Builds bank/ from the training split; returns its manifest."""
    made_from = of_stage(experiment, STAGE)
    if (manifest := finished(store, STAGE, made_from)) is not None:
        return manifest
    settings = experiment.bank
    source = open_source(experiment.data, experiment.seed)
    shards = source.shards("train")
    started = time.perf_counter()
    patches, seen, images = _collect(experiment, store, shards, source.count("train"))
    extracted = time.perf_counter()
    bank, facts = build_bank(
        patches,
        settings.size,
        experiment.data.shape[0],
        experiment.grid.patch,
        settings.iterations,
        settings.restarts,
        experiment.seed,
        gpu=use_gpu(experiment),
        actors=settings.shards,
    )
    done = time.perf_counter()
    with store.writing(STAGE, "bank.safetensors") as path:
        bank.save(path, {"fingerprint": made_from})
    with store.writing(STAGE, "bank.png") as path:
        save_bank(path, bank, facts["cluster_sizes"])
    manifest = {
        "fingerprint": made_from,
        "data": source.facts(),
        **facts,
        "patches_seen": seen,
        "images": images,
        "seconds": round(done - started, 2),
        "seconds_clustering": round(done - extracted, 2),
        "images_per_s": images / (done - started),
    }
    store.write_json(manifest, STAGE, "manifest.json")
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    m = manifest
    return f"{m['k']} parts of {m['patches']:,} patches, objective {m['objective']:.3f}"


def load_bank(experiment: Experiment, store: Store, needed_by: str) -> PartBank:
    """The bank of a run. Raises UserError if the stage has not finished."""
    required(store, STAGE, of_stage(experiment, STAGE), needed_by)
    with store.reading(STAGE, "bank.safetensors") as path:
        return PartBank.load(path)


def use_gpu(experiment: Experiment) -> bool:
    """FAISS on GPU where there is one and it is not forbidden."""
    return experiment.scale.use_gpu is not False and faiss.get_num_gpus() > 0


def _collect(
    experiment: Experiment, store: Store, shards: list[Shard], total: int | None
) -> tuple[NDArray[np.uint8], int, int]:
    """A seeded sample of the patches of all shards: (M, D) uint8, patches seen, images read.

    Writes rejects.jsonl; raises UserError on too many, as soon as that is clear.
    """
    settings = experiment.bank
    sample = Reservoir(settings.max_patches, experiment.seed)
    limit = RejectLimit(experiment.data, shards, total)
    rejects: list[dict[str, str]] = []
    rows = [{"index": index, "shard": shard} for index, shard in enumerate(shards)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(extractor(experiment))
    with stage_progress(STAGE, total or 0) as show:
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            sample.add(row["index"], row["patches"].reshape(-1, row["dimensions"]))
            found = json.loads(row["rejects"])
            rejects += found
            too_many = limit.add("train", row["images"], len(found))
            show(limit.rows - limit.rejects)
            if too_many:
                break
    write_rejects(store, STAGE, rejects)
    check_rejects(limit.rejects, limit.rows, experiment.data)
    return sample.result(), sample.seen, limit.rows - limit.rejects


def extractor(experiment: Experiment) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The Ray Data function shard -> its patches."""
    grid, settings, seed = experiment.canvas_grid, experiment.bank, experiment.seed
    downscale = experiment.grid.downscale

    def extract_shard(row: dict[str, Any]) -> dict[str, Any]:
        try:
            rows = row["shard"].read()
        except UserError as error:
            return {"index": row["index"], "error": str(error)}
        rng = np.random.default_rng([seed, row["index"]])
        images = canvas_bytes(rows.images, downscale)
        patches = extract(images, grid, settings.sampling, settings.min_energy, rng)
        return {
            "index": row["index"],
            "patches": patches.reshape(-1),
            "dimensions": patches.shape[1],
            "images": len(rows),
            "rejects": json.dumps(listed(rows.rejects, row["shard"].name)),
            "error": "",
        }

    return extract_shard
