"""Stage `vae`: posterior and decoder, with the prior trained on, by Ray Train or in this
process; exports model/.

A baseline is trained as a whole by this stage.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, ModelSpec, spec_of
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.authors.training import AuthorsObjective
from npdraw_dist.nn.baselines.base import Baseline, BaselineObjective
from npdraw_dist.nn.calibration import fit_temperature
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import CHOICES, NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.pipeline import prior
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.gpu_task import on_gpu
from npdraw_dist.pipeline.inputs import read_digest
from npdraw_dist.pipeline.models import (
    Weights,
    as_tensors,
    below,
    source_model,
    start_weights,
    starts_from_model,
)
from npdraw_dist.pipeline.store import Store, fingerprint_of, finished, required
from npdraw_dist.pipeline.train_stage import fall_note, run_stage
from npdraw_dist.training import checkpoint
from npdraw_dist.training.feed import noise_seed

if TYPE_CHECKING:
    from ray.train import UserCallback

STAGE = "vae"
CALIBRATED = 128  # validation images that fit the posterior's temperatures, with so many draws of z each:
CALIBRATED_DRAWS = 4
CALIBRATION = 2**32 - 3  # separates its seeds from those of training and scoring


@dataclass(frozen=True)
class Start:
    """What the VAE starts from: the weights of the pre-trained prior, and the parts (K, C, P, P).

    model: the weights of a trained model that the rest starts from, if any (`init.model`).
    """

    prior: Weights
    parts: NDArray[np.float32]
    model: Weights | None = None


def run(experiment: Experiment, store: Store, callbacks: Sequence["UserCallback"] = ()) -> dict[str, Any]:
    """Trains the VAE from the pre-trained prior and writes vae/ and model/; returns its manifest."""
    for stage in experiment.stage_names[: experiment.stage_names.index(STAGE)]:
        required(store, experiment, stage, STAGE)
    if (manifest := finished(store, experiment, STAGE)) is not None and store.has("model", "config.json"):
        return manifest
    if experiment.model.kind == "npdraw":
        start = load_start(experiment, store)
        trained = run_stage(experiment, store, STAGE, make_objective, start, callbacks)
    else:
        weights = below(source_model(experiment).state_dict()) if starts_from_model(experiment) else None
        trained = run_stage(experiment, store, STAGE, make_baseline_objective, weights, callbacks)
    spec = spec_of(experiment)
    assert spec.data is not None
    data = spec.data.model_copy(update={"inputs": read_digest(store)})
    model = make_model(spec.model_copy(update={"data": data}))
    model.load_state_dict(checkpoint.weights(trained.tensors, "model."))
    cpu_started = time.process_time()
    calibration = calibrate(model.eval(), experiment, store) if isinstance(model, NPDraw) else {}
    spent = trained.summary["core_seconds"] + time.process_time() - cpu_started
    trained.summary["core_seconds"] = round(spent, 2)
    with store.writing("model") as folder:
        model.save_pretrained(folder)
    manifest = {
        "fingerprint": fingerprint_of(experiment, STAGE),
        "checkpoint": trained.checkpoint_name,
        **trained.summary,
        **calibration,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    store.write_manifest(manifest, STAGE)
    return manifest


def describe(manifest: Mapping[str, Any]) -> str:
    """The stage's numbers in the table at the end of a run."""
    return "; ".join(filter(None, (f"{manifest['parameters']:,} parameters", fall_note(manifest))))


def calibrate(model: NPDraw, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Fits the posterior's temperatures on validation images; returns the lines of the manifest on it.

    Nothing without such images, nor for the authors' model, which has no temperatures.
    """
    started = time.perf_counter()
    images = store.parses("valid").sample(CALIBRATED, experiment.seed).images
    if not len(images) or experiment.authors.model:
        return {}
    generator = torch.Generator().manual_seed(noise_seed(experiment.seed, CALIBRATION))
    x = binarized(images, model.spec.binarize, generator)
    noise = noise_seed(experiment.seed, CALIBRATION, 1)
    fitted = on_gpu(experiment.scale, STAGE, _fitted, model, x, CALIBRATED_DRAWS, noise).result
    with torch.no_grad():
        model.temperature.copy_(torch.tensor([fitted[name] for name in CHOICES]))
    return {"temperature": fitted, "calibration_seconds": round(time.perf_counter() - started, 2)}


def _fitted(device: torch.device, model: NPDraw, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    return fit_temperature(model.to(device), x.to(device), draws, seed)


def load_start(experiment: Experiment, store: Store) -> Start:
    weights = below(prior.trained_weights(experiment, store, STAGE))
    bank = load_bank(experiment, store, STAGE)
    model = below(start_weights(experiment, bank)) if starts_from_model(experiment) else None
    return Start(weights, bank.parts.numpy(), model)


def make_objective(experiment: Experiment, start: Start) -> VAEObjective:
    model = NPDraw(ModelSpec.of(experiment))
    if start.model is None:
        model.set_bank(PartBank(torch.tensor(start.parts)))
    else:  # its posterior knows the parts
        model.load_state_dict(as_tensors(start.model))
    model.prior.load_state_dict(as_tensors(start.prior))
    kind = AuthorsObjective if experiment.authors.model else VAEObjective
    return kind(model, experiment.vae)


def make_baseline_objective(experiment: Experiment, start: Weights | None) -> BaselineObjective:
    """start: the weights of a trained model, if the run starts from one."""
    model = make_model(BaselineSpec.of(experiment))
    assert isinstance(model, Baseline)
    if start is not None:
        model.load_state_dict(as_tensors(start))
    return BaselineObjective(model, experiment.vae)
