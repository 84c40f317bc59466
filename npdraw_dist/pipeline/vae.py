"""Stage `vae`: posterior and decoder, with the prior trained on, by Ray Train; exports model/.

A baseline is trained whole by it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.train import UserCallback
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, spec_of
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.baselines.base import BaselineObjective
from npdraw_dist.nn.calibration import fit_temperature
from npdraw_dist.nn.models import make_baseline, make_model
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective, observe
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.store import Store, finished, required
from npdraw_dist.pipeline.train_stage import as_batch, load_head, run_training
from npdraw_dist.training import checkpoint
from npdraw_dist.training.feed import noise_seed

STAGE = "vae"
CALIBRATION = 2**32 - 3  # keeps the seeds apart from those of training and scoring


def run(experiment: Experiment, store: Store, callbacks: Sequence[UserCallback] = ()) -> dict[str, Any]:
    """Trains the VAE from the pre-trained prior and writes vae/ and model/; returns its manifest."""
    made_from = of_stage(experiment, STAGE)
    for stage in experiment.stage_names[: experiment.stage_names.index(STAGE)]:
        required(store, stage, of_stage(experiment, stage), STAGE)
    if (manifest := finished(store, STAGE, made_from)) is not None and store.has("model", "config.json"):
        return manifest
    make: Callable[[dict[str, Any]], Any] = make_baseline_objective
    extra: dict[str, Any] = {}
    if experiment.model.kind == "npdraw":
        make, extra = make_objective, {"start": start(experiment, store)}
    summary, saved, tensors = run_training(experiment, store, STAGE, make, extra, callbacks)
    model = make_model(spec_of(experiment))
    model.load_state_dict(checkpoint.weights(tensors, "model."))
    if isinstance(model, NPDraw):
        summary |= calibrate(model.eval(), experiment, store)
    with store.writing("model") as folder:
        model.save_pretrained(folder)
    manifest = {
        "fingerprint": made_from,
        "checkpoint": saved,
        **summary,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    store.write_json(manifest, STAGE, "manifest.json")
    return manifest


def calibrate(model: NPDraw, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Fits the posterior's temperatures on validation images; returns what the manifest tells of it."""
    settings = experiment.vae
    if not settings.calibrate_images:
        return {}
    began = time.perf_counter()
    images = as_batch(load_head(store, "valid", settings.calibrate_images)).images
    if not len(images):
        return {}
    generator = torch.Generator().manual_seed(noise_seed(experiment.seed, CALIBRATION))
    x = observe(images, model.spec.binarize, generator)
    fitted = fit_temperature(model, x, settings.calibrate_draws, noise_seed(experiment.seed, CALIBRATION, 1))
    return {"temperature": fitted, "calibration_seconds": round(time.perf_counter() - began, 2)}


def start(experiment: Experiment, store: Store) -> ray.ObjectRef:
    """The weights of the pre-trained prior and the bank, in Ray's object store."""
    prior = required(store, "prior", of_stage(experiment, "prior"), STAGE)
    with store.reading("prior", prior["checkpoint"]) as folder:
        weights = checkpoint.weights(checkpoint.read(folder)[0], "prior.")
    with store.reading("bank", "bank.safetensors") as path:
        bank = PartBank.load(path)
    return ray.put(
        {"prior": {name: value.numpy() for name, value in weights.items()}, "bank": bank.parts.numpy()}
    )


def make_objective(config: dict[str, Any]) -> VAEObjective:
    experiment = Experiment.model_validate(config["experiment"])
    start = ray.get(config["start"])
    model = NPDraw(ModelSpec.of(experiment))
    prior: dict[str, Tensor] = {name: torch.tensor(value) for name, value in start["prior"].items()}
    model.prior.load_state_dict(prior)
    model.set_bank(PartBank(torch.tensor(start["bank"])))
    return VAEObjective(model, experiment.vae, experiment.prior.weight_decay)


def make_baseline_objective(config: dict[str, Any]) -> BaselineObjective:
    experiment = Experiment.model_validate(config["experiment"])
    return BaselineObjective(make_baseline(BaselineSpec.of(experiment)), experiment.vae)
