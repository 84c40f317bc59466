"""Stage `vae`: trains posterior and decoder with the trained prior, or a whole baseline; writes model/."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.parts import PartBank
from npdraw_dist.distributed.actors import on_gpu
from npdraw_dist.nn.generative import ModelObjective
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.networks import CHOICES
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import fit_temperature
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.stage import Stage, Watch
from npdraw_dist.pipeline.stage_job import Start
from npdraw_dist.pipeline.store import Store, finished
from npdraw_dist.pipeline.train_stage import fall_note, run_stage, validation_images
from npdraw_dist.pipeline.trained_models import source_model
from npdraw_dist.system.model_files import WEIGHTS
from npdraw_dist.training import checkpoint
from npdraw_dist.training.feed import noise_seed

NAME = "vae"
CALIBRATED, CALIBRATED_DRAWS = 128, 4  # validation images for fitting q's temperatures; draws of z per image
CALIBRATION = 2**32 - 3  # keeps the seeds of calibration apart from those of training and scoring


def run(experiment: Experiment, store: Store, watch: Watch | None = None) -> dict[str, Any]:
    """Trains the VAE from the trained prior, and writes vae/ and model/; returns the manifest."""
    if (manifest := done(experiment, store)) is not None:
        return manifest
    experiment = store.with_vocabulary(experiment)
    start = load_start(experiment, store)
    manifest, tensors, _ = run_stage(experiment, store, NAME, make_objective, start, watch)
    spec = spec_of(experiment)
    assert spec.data is not None
    data = spec.data.model_copy(update={"inputs": store.shards().manifest.digests["train"]})
    model = make_model(spec.model_copy(update={"data": data}))
    model.load_state_dict(checkpoint.weights(tensors, "model."))
    cpu_started = time.process_time()
    calibration = calibrate(model.eval(), experiment, store) if isinstance(model, NPDraw) else {}
    spent = manifest["core_seconds"] + time.process_time() - cpu_started
    with store.writing("model") as folder:
        model.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    manifest |= {"core_seconds": round(spent, 2), **calibration, "parameters": parameters}
    store.write_manifest(manifest, NAME)
    return manifest


def done(experiment: Experiment, store: Store) -> dict[str, Any] | None:
    """The manifest; None if the stage has not finished or the model is missing. Raises as `finished` does."""
    return finished(store, experiment, NAME) if store.has("model", WEIGHTS) else None


def describe(manifest: Mapping[str, Any]) -> str:
    """Formats the stage's numbers for the table at the end of a run."""
    return "; ".join(filter(None, (f"{manifest['parameters']:,} parameters", fall_note(manifest))))


def calibrate(model: NPDraw, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Fits the posterior's temperatures on validation images; returns the manifest's entries.

    Returns {} if there are no validation images, or if the kind of model is `authors`.
    """
    started = time.perf_counter()
    images = validation_images(store, CALIBRATED, experiment.seed).images
    if not len(images) or experiment.by_authors:
        return {}
    generator = torch.Generator().manual_seed(noise_seed(experiment.seed, CALIBRATION))
    x = binarized(images, model.spec.binarize, generator)
    noise = noise_seed(experiment.seed, CALIBRATION, 1)
    fitted = on_gpu(experiment.scale, NAME, _fitted, model, x, CALIBRATED_DRAWS, noise)[0]
    with torch.no_grad():
        model.temperature.copy_(torch.tensor([fitted[name] for name in CHOICES]))
    return {"temperature": fitted, "calibration_seconds": round(time.perf_counter() - started, 2)}


def _fitted(device: torch.device, model: NPDraw, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    return fit_temperature(model.to(device), x.to(device), draws, seed)


def load_start(experiment: Experiment, store: Store) -> Start:
    """The tensors of `init.model`, or else the bank's parts, together with the weights of the trained prior.

    A baseline has neither a bank nor a stage `prior`.
    """
    start: Start = {}
    if experiment.init.model is not None:
        start = source_model(experiment).state_dict()
    elif "bank" in experiment.stage_names:
        start = {"bank_parts": load_bank(experiment, store).parts}
    if "prior" not in experiment.stage_names:
        return start
    weights = prior.trained_weights(experiment, store)
    return {**start, **{prior.PREFIX + name: value for name, value in weights.items()}}


def make_objective(experiment: Experiment, start: Start) -> ModelObjective:
    model = make_model(spec_of(experiment))
    if not isinstance(model, NPDraw):
        model.load_state_dict(start or model.state_dict())
        return model.objective(experiment.vae)
    model.set_bank(PartBank(start["bank_parts"]))
    missing, unknown = model.load_state_dict(start, strict=False)
    assert not unknown, unknown
    assert not any(name.startswith(prior.PREFIX) for name in missing), missing
    return model.objective(experiment.vae)


STAGE = Stage(NAME, ("data", "bank", "parse", "prior"), done, run, describe)
