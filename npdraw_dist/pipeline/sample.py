"""Stage `sample`: pictures of the trained model, and the final numbers in metrics.json."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import Batch
from npdraw_dist.measure.curves import panels, save_curves
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.measure.pictures import PREVIEWS
from npdraw_dist.nn.card import SAMPLES_FILE
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.gpu_task import Done, on_gpu
from npdraw_dist.pipeline.model_card import MEASURED, write_results
from npdraw_dist.pipeline.models import load_model
from npdraw_dist.pipeline.pictures import write_neighbours, write_reconstructions, write_samples
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.scores import Numbers, score
from npdraw_dist.pipeline.store import METRICS, Store, fingerprint_of, record_opening, required
from npdraw_dist.training.metrics_log import read_metrics

STAGE = "sample"
SAMPLES = 64  # images in samples.png
PICTURES = ("samples.png", "generation.gif", "reconstructions.png", "neighbours.png", "curves.png")
SHARDS = 32  # most files of training images that are opened for neighbours.png


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Writes the pictures and metrics.json; returns it."""
    manifests = {stage: required(store, experiment, stage, STAGE) for stage in experiment.stage_names[:-1]}
    if is_done(experiment, store):
        return store.metrics()
    started, cpu_started = time.perf_counter(), time.process_time()
    before, split = _before(experiment, store), experiment.eval.split
    if split == "test":
        record_opening(store.filesystem, store.root, STAGE)
    with stage_progress(STAGE, SAMPLES):
        made, elsewhere = _make(experiment, store)
        for picture, content in made.pictures.items():
            with store.writing(picture) as path:
                path.write_bytes(content)
        _neighbours(experiment, store, made.samples)
        _curves(experiment, store)
    other = "valid" if split == "test" else "test"
    of_parts = ("canvas_mse", "mean_parts") if "bank" in manifests else ()
    spent = time.process_time() - cpu_started + elsewhere + before.get("sample/core_seconds", 0.0)
    metrics = {
        **{key: before[key] for key in before if key.startswith((f"{other}/", f"prior/{other}_"))},
        "fingerprint": fingerprint_of(experiment, STAGE),
        **{f"{split}/{key}": value for key, value in made.numbers.items()},
        **({} if made.prior_nll is None else {f"prior/{split}_nll": made.prior_nll}),
        **{f"parse/{key}": manifests["parse"][key] for key in of_parts},
        **{
            f"{stage}/{key}": manifest[key]
            for key in ("images_per_s", "seconds", "core_seconds")
            for stage, manifest in manifests.items()
        },
        "sample/images_per_s": SAMPLES / made.drawing_s,
        "sample/seconds": round(time.perf_counter() - started + before.get("sample/seconds", 0.0), 2),
        "sample/core_seconds": round(spent, 2),
    }
    _publish(experiment, store, metrics, manifests["vae"]["parameters"])
    store.write_json(metrics, METRICS)
    return metrics


def _publish(experiment: Experiment, store: Store, metrics: Mapping[str, Any], parameters: int) -> None:
    """Numbers and samples in the model folder: its config.json, its card and samples.png."""
    split = experiment.eval.split
    results = {
        "split": split,
        **{name: metrics[f"{split}/{name}"] for name in MEASURED if f"{split}/{name}" in metrics},
        "protocol": f"Measured at the end of the training, with seed {experiment.seed}.",
    }
    with store.reading("samples.png") as drawn, store.writing("model", SAMPLES_FILE) as path:
        shutil.copyfile(drawn, path)
    write_results(store.filesystem, store.path("model"), results, parameters)


@dataclass(frozen=True)
class Made:
    """pictures: file name -> content. samples: those of neighbours.png, (N, C, H, W). numbers: the `score`.

    prior_nll: None of a baseline.
    """

    pictures: dict[str, bytes]
    samples: Tensor
    drawing_s: float
    numbers: Numbers
    prior_nll: float | None


def _make(experiment: Experiment, store: Store) -> Done[Made]:
    """All that takes the model, on a GPU if there is one."""
    with store.reading("model") as folder:
        model = load_model(str(folder))
    data = store.parses(experiment.eval.split).sample(experiment.eval.images, experiment.seed)
    scored = prior.scored(experiment, store) if "prior" in experiment.stage_names else None
    return on_gpu(experiment.scale, STAGE, _draw_and_score, model, data, experiment, scored)


def _draw_and_score(
    device: torch.device,
    model: GenerativeModel,
    data: Batch,
    experiment: Experiment,
    scored: tuple[StepPrior, Batch] | None,
) -> Made:
    """data: the images to score. scored: a prior with the parses for its NLL."""
    settings, seed, model = experiment.eval, experiment.seed, model.to(device)
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.perf_counter()
        samples = write_samples(model, folder, SAMPLES, seed, settings.temperature)[:PREVIEWS]
        drawing_s = time.perf_counter() - started
        if isinstance(model, NPDraw):
            write_reconstructions(model, data.images, folder / "reconstructions.png")
        pictures = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in PICTURES}
    numbers = score(model, data, settings.k, seed)
    nll = None if scored is None else prior.mean_nll(*scored, device)
    return Made(pictures, samples.clone(), drawing_s, numbers, nll)


def is_done(experiment: Experiment, store: Store) -> bool:
    """Whether metrics.json has the numbers of this config, of the split that it asks for."""
    return f"{experiment.eval.split}/nll_iwae" in _before(experiment, store)


def _before(experiment: Experiment, store: Store) -> dict[str, Any]:
    """The metrics.json that this config has already; {} if none."""
    found = store.metrics()
    return found if found.get("fingerprint") == fingerprint_of(experiment, STAGE) else {}


def describe(metrics: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run: of the test split if they are there."""
    split = "test" if "test/nll_iwae" in metrics else "valid"
    bounds = format_metrics(metrics, "nll_iwae", "elbo", "bits_per_dim", prefix=f"{split}/")
    return f"{bounds} (IWAE {metrics[f'{split}/k']}, {metrics[f'{split}/n']:,} {split} images)"


def _neighbours(experiment: Experiment, store: Store, samples: Tensor) -> None:
    """neighbours.png: samples beside training images."""
    train = store.parses("train").some(SHARDS, experiment.seed)
    with store.writing("neighbours.png") as path:
        write_neighbours(samples, train, experiment.seed, path)


def _curves(experiment: Experiment, store: Store) -> None:
    stages = [stage for stage in ("prior", "vae") if store.has(stage)]
    records = {stage: read_metrics(store.filesystem, store.path(stage)) for stage in stages}
    with store.writing("curves.png") as path:
        save_curves(path, panels(experiment, records))
