"""Stage `sample`: draws samples from the trained model and writes the final numbers to metrics.json."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.pages import rows_png, save_samples
from npdraw_dist.core.parts import Batch
from npdraw_dist.distributed.actors import on_gpu
from npdraw_dist.measure.curves import panels, save_curves
from npdraw_dist.measure.distances import neighbours, save_neighbours
from npdraw_dist.measure.metrics import format_metrics
from npdraw_dist.nn.generative import GenerativeModel, SampleTrace, seeded
from npdraw_dist.nn.hub import SAMPLES_FILE
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.pictures import PREVIEWS
from npdraw_dist.pipeline.progress import stage_progress
from npdraw_dist.pipeline.scores import Numbers, score
from npdraw_dist.pipeline.stage import Stage
from npdraw_dist.pipeline.store import METRICS, Store, fingerprint_of, required
from npdraw_dist.pipeline.trained_models import STATED, load_model, write_results
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import require_writable, writing
from npdraw_dist.training.metrics_log import read_metrics

NAME = "sample"
SAMPLES = 64  # number of images in samples.png
PICTURES = ("samples.png", "generation.gif", "reconstructions.png", "neighbours.png", "curves.png")
SHARDS = 32  # largest number of training shards that neighbours.png reads
SEARCHED, SEARCHED_BYTES = 10_000, 256 << 20  # limits on the training images searched for neighbours


def run(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Writes the pictures and metrics.json; returns the content of metrics.json."""
    manifests = {stage: required(store, experiment, stage) for stage in experiment.stage_names[:-1]}
    if (metrics := done(experiment, store)) is not None:
        return metrics
    started, cpu_started = time.perf_counter(), time.process_time()
    before, split = _before(experiment, store), experiment.eval.split
    if split == "test":
        store.record_opening(NAME)
    with store.reading("model") as folder:
        model = load_model(str(folder))
    experiment = store.with_vocabulary(experiment)
    data = store.parses(split, experiment).sample(experiment.eval.images, experiment.seed)
    scored = prior.scored(experiment, store) if "prior" in manifests else None
    with stage_progress(NAME, SAMPLES):
        made, elsewhere = on_gpu(experiment.scale, NAME, _draw_and_score, model, data, experiment, scored)
        pictures, samples, numbers = made
        for picture, content in pictures.items():
            with store.writing(picture) as path:
                path.write_bytes(content)
        write_neighbours(experiment, store, samples)
        stages = [stage for stage in ("prior", "vae") if store.has(stage)]
        records = {stage: read_metrics(store.filesystem, store.path(stage)) for stage in stages}
        with store.writing("curves.png") as path:
            save_curves(path, panels(experiment, records))
    other = "valid" if split == "test" else "test"
    of_parts = ("canvas_mse", "mean_parts") if "bank" in manifests else ()
    spent = time.process_time() - cpu_started + elsewhere + before.get("sample/core_seconds", 0.0)
    metrics = {
        **{key: before[key] for key in before if key.startswith((f"{other}/", f"prior/{other}_"))},
        "fingerprint": fingerprint_of(experiment, NAME),
        **numbers,
        **{f"parse/{key}": manifests["parse"][key] for key in of_parts},
        **{
            f"{stage}/{key}": manifest[key]
            for key in ("images_per_s", "seconds", "core_seconds")
            for stage, manifest in manifests.items()
        },
        "sample/seconds": round(time.perf_counter() - started + before.get("sample/seconds", 0.0), 2),
        "sample/core_seconds": round(spent, 2),
    }
    _publish(experiment, store, metrics)
    store.write_json(metrics, METRICS)
    return metrics


def _publish(experiment: Experiment, store: Store, metrics: Mapping[str, Any]) -> None:
    """Writes the scores to config.json, and the samples to samples.png, in the model folder."""
    split = experiment.eval.split
    results = {
        "split": split,
        **{name: metrics[f"{split}/{name}"] for name in STATED if f"{split}/{name}" in metrics},
        "protocol": f"Measured at the end of the training, with seed {experiment.seed}.",
    }
    with store.reading("samples.png") as drawn, store.writing("model", SAMPLES_FILE) as path:
        shutil.copyfile(drawn, path)
    write_results(store.filesystem, store.path("model"), results)


def _draw_and_score(
    device: torch.device,
    model: GenerativeModel,
    data: Batch,
    experiment: Experiment,
    scored: tuple[StepPrior, Batch] | None,
) -> tuple[dict[str, bytes], Tensor, Numbers]:
    """Returns pictures by name, samples (N, C, H, W) for neighbours.png, and scores of the model by name.

    data: the images to score. scored: the prior, and the parses for its NLL; None for a baseline.
    """
    settings, seed, split, model = experiment.eval, experiment.seed, experiment.eval.split, model.to(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        trace = model.sample_trace(SAMPLES, generator=seeded(model.device, None, seed))
        trace.images.cpu()  # waits until a GPU has finished
        drawing_s = time.perf_counter() - started
        samples = write_samples(trace, folder)[:PREVIEWS]
        if isinstance(model, NPDraw):
            (folder / "reconstructions.png").write_bytes(reconstructions(model, data.images))
        pictures = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in PICTURES}
    numbers = {f"{split}/{key}": value for key, value in score(model, data, settings.k, seed).items()}
    if scored is not None:
        numbers[f"prior/{split}_nll"] = prior.mean_nll(*scored, device)
    return pictures, samples.clone(), {**numbers, "sample/images_per_s": SAMPLES / drawing_s}


def done(experiment: Experiment, store: Store) -> dict[str, Any] | None:
    """The content of metrics.json if it has scores of this config on `eval.split`; else None."""
    found = _before(experiment, store)
    return found if f"{experiment.eval.split}/nll_iwae" in found else None


def _before(experiment: Experiment, store: Store) -> dict[str, Any]:
    """The content of metrics.json if an earlier command wrote it with this config; else {}."""
    found = store.metrics()
    return found if found.get("fingerprint") == fingerprint_of(experiment, NAME) else {}


def describe(metrics: Mapping[str, Any]) -> str:
    """Formats the scores for the table at the end of a run, on the test split if it was scored."""
    split = "test" if "test/nll_iwae" in metrics else "valid"
    bounds = format_metrics(metrics, "nll_iwae", "elbo", "bits_per_dim", prefix=f"{split}/")
    return f"{bounds} (IWAE {metrics[f'{split}/k']}, {metrics[f'{split}/n']:,} {split} images)"


def write_neighbours(experiment: Experiment, store: Store, samples: Tensor) -> None:
    """Writes neighbours.png, with 16 `samples` (N, C, H, W), the nearest training images and random ones."""
    seed, samples = experiment.seed, samples[:PREVIEWS]
    train = store.parses("train").some(SHARDS, seed)
    limit = min(SEARCHED, max(SEARCHED_BYTES // samples[0].numel(), PREVIEWS))
    with store.writing("neighbours.png") as path:
        save_neighbours(path, samples, neighbours(samples, train.some_images(limit, seed), PREVIEWS, seed))


def require_local_folder(out: str) -> None:
    """Raises UserError if --out is not a local folder that can be written. Creates nothing."""
    if not out:
        raise UserError("--out is empty; is a variable unset?")
    if "://" in out:
        raise UserError(f"--out {out} is a URI; pictures go to a local folder")
    require_writable(out, folder=True)


@contextmanager
def local_folder(out: str) -> Iterator[Path]:
    """Creates and yields the folder of a command's --out. Raises UserError if it cannot be written."""
    require_local_folder(out)
    folder = Path(out).expanduser()
    with writing(out):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def reconstructions(model: NPDraw, images: Tensor) -> bytes:
    """uint8 images (N, C, H, W) -> PNG of 16 images, with canvas and image of their most likely z and u."""
    x = model.as_input(images[:PREVIEWS])
    drawn = model.as_drawings(x)
    return rows_png({"image": x.cpu(), "canvas": drawn.canvas.cpu(), "reconstruction": drawn.images.cpu()})


def write_samples(trace: SampleTrace, folder: Path) -> Tensor:
    """Writes samples.png, generation.gif and samples.npz; returns the images (N, C, H, W)."""
    images = trace.images.cpu()
    save_samples(folder / "samples.png", images, None if trace.canvas is None else trace.canvas.cpu())
    (folder / "generation.gif").write_bytes(trace.gif())
    np.savez_compressed(folder / "samples.npz", **trace.arrays())
    return images


STAGE = Stage(NAME, ("data", "bank", "parse", "prior", "vae"), done, run, describe, PICTURES)
