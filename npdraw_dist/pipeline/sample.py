"""Stage `sample`: pictures of the trained model, and the final numbers in metrics.json."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npdraw_dist.config.schema import Experiment
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.measure.pictures import save_curves
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.models import load_model
from npdraw_dist.pipeline.openings import record_opening
from npdraw_dist.pipeline.pictures import write_reconstructions, write_samples
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.scores import score
from npdraw_dist.pipeline.store import Store, required
from npdraw_dist.training.metrics_log import read_metrics

STAGE = "sample"
PICTURES = ("samples.png", "generation.gif", "reconstructions.png", "curves.png")
CURVES = (
    "train/loss",
    "train/surrogate",
    "train/elbo",
    "valid/nll",
    "valid/elbo",
    "valid/reconstruction",
    "valid/kl",
    "valid/kl_what",
    "valid/kl_whether",
)

# Numbers of a model of parts; baselines do not have them.
OF_PARTS = (("parse", "canvas_mse"), ("parse", "mean_parts"))


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Writes samples.png, generation.gif, curves.png, reconstructions.png and metrics.json; returns it."""
    made_from = of_stage(experiment, STAGE)
    manifests = {
        stage: required(store, stage, of_stage(experiment, stage), STAGE)
        for stage in experiment.stage_names[:-1]
    }
    if is_done(experiment, store):
        return store.read_json("metrics.json")
    started, cpu_started = time.perf_counter(), time.process_time()
    settings = experiment.eval
    if settings.split == "test":
        record_opening(store.filesystem, store.root, STAGE)
    with store.reading("model") as folder:
        model = load_model(str(folder))
    with stage_progress(STAGE, settings.samples):
        with tempfile.TemporaryDirectory() as name:
            write_samples(model, Path(name), settings.samples, experiment.seed, settings.temperature)
            for picture in ("samples.png", "generation.gif"):
                with store.writing(picture) as path:
                    (Path(name) / picture).rename(path)
        _curves(store)
        drawn = time.perf_counter()
        data = store.parses(settings.split).sample(settings.images, experiment.seed)
        if isinstance(model, NPDraw):
            with store.writing("reconstructions.png") as path:
                write_reconstructions(model, data.images, path)
        numbers = score(model, data, settings.k, experiment.seed)
        of_prior = {}
        if "prior" in manifests:
            of_prior[f"prior/{settings.split}_nll"] = prior.final_nll(experiment, store)
    before = _before(experiment, store)
    metrics = {
        **_of_other_split(experiment, before),
        "fingerprint": made_from,
        **{f"{settings.split}/{key}": value for key, value in numbers.items()},
        **of_prior,
        **{f"{stage}/{key}": manifests[stage][key] for stage, key in OF_PARTS if "bank" in manifests},
        **{f"{stage}/images_per_s": manifest["images_per_s"] for stage, manifest in manifests.items()},
        **{f"{stage}/seconds": manifest["seconds"] for stage, manifest in manifests.items()},
        **{
            f"{stage}/core_seconds": manifest["core_seconds"]
            for stage, manifest in manifests.items()
            if "core_seconds" in manifest
        },
        "sample/images_per_s": settings.samples / (drawn - started),
        "sample/seconds": round(time.perf_counter() - started + before.get("sample/seconds", 0.0), 2),
    }
    if not before or "sample/core_seconds" in before:  # else an older version did a part of it
        spent = time.process_time() - cpu_started + before.get("sample/core_seconds", 0.0)
        metrics["sample/core_seconds"] = round(spent, 2)
    store.write_json(metrics, "metrics.json")
    return metrics


def is_done(experiment: Experiment, store: Store) -> bool:
    """Whether metrics.json has the numbers of this config, of the split that it asks for."""
    if not store.has("metrics.json"):
        return False
    metrics = store.read_json("metrics.json")
    return (
        metrics.get("fingerprint") == of_stage(experiment, STAGE)
        and f"{experiment.eval.split}/nll_iwae" in metrics
    )


def _before(experiment: Experiment, store: Store) -> dict[str, Any]:
    """The metrics.json that this config has already; {} if none."""
    found = store.read_json("metrics.json") if store.has("metrics.json") else {}
    return found if found.get("fingerprint") == of_stage(experiment, STAGE) else {}


def _of_other_split(experiment: Experiment, found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the other split in `found`."""
    other = "valid" if experiment.eval.split == "test" else "test"
    return {key: value for key, value in found.items() if key.startswith((f"{other}/", f"prior/{other}_"))}


def describe(metrics: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run: of the test split if they are there."""
    split = "test" if "test/nll_iwae" in metrics else "valid"
    bounds = format_metrics(metrics, "nll_iwae", "elbo", "bits_per_dim", prefix=f"{split}/")
    return f"{bounds} (IWAE {metrics[f'{split}/k']}, {metrics[f'{split}/n']:,} {split} images)"


def _curves(store: Store) -> None:
    table = {}
    for stage in ("prior", "vae"):
        if not store.has(stage):
            continue
        records = read_metrics(store.filesystem, store.path(stage))
        for key in CURVES:
            points = [(record["images_seen"], record[key]) for record in records if key in record]
            if points:
                table[f"{stage} {key}"] = ([x for x, _ in points], [y for _, y in points])
    with store.writing("curves.png") as path:
        save_curves(path, table)
