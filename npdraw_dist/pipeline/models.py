"""Trained models: which folder, loaded and checked; and what a run that starts from one takes of it."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.model_files import model_folder
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn import hub
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.growth import grown
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.source_model import with_source

RUNS = "runs"  # the default --storage of `train`

Weights = dict[str, NDArray[Any]]  # a state dict as arrays, which travel to workers


def chosen_model(model: str | None) -> str:
    """The model folder or URI of --model: a run, a model folder, a URI or an id of the hub.

    None: that of the run under ./runs that finished last. Raises UserError if there is no model.
    """
    if model is not None:
        return model_folder(model, f"--model {model}")
    models = sorted(Path(RUNS).glob("*/model/config.json"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(
            f"no --model given, and no trained model under {RUNS}/: train the default one in about "
            "2 minutes with `npdraw train`, then give this command again"
        )
    print(f"no --model given: taking the last run, {models[-1].parents[1]}")
    return str(models[-1].parent)


def load_model(folder: str) -> GenerativeModel:
    """The model of any kind at what --model takes, in eval mode.

    Raises UserError if there is no model that this version can read.
    """
    said = f"--model {folder}"
    return hub.load_from(model_folder(folder, said), said)


def load_npdraw(folder: str) -> NPDraw:
    """`load_model` of an NP-DRAW model. Raises UserError for other kinds: they have no parts to edit."""
    model = load_model(folder)
    if not isinstance(model, NPDraw):
        raise UserError(f"--model {folder} is of kind {model.spec.kind}, which draws no parts")
    return model


def read_spec(folder: str) -> ModelSpec | BaselineSpec:
    """What the config.json of a model folder or URI states. Raises UserError as `load_model` does."""
    said = f"--model {folder}"
    return hub.read_spec(model_folder(folder, said), said)


def local_device(use_gpu: bool | None) -> torch.device:
    """A GPU of this machine; None: if there is one, else the CPU. Raises UserError if there must be one."""
    found = torch.cuda.is_available()
    if use_gpu and not found:
        raise UserError("--use_gpu true, but torch finds no GPU on this machine; leave it out")
    return torch.device("cuda" if found and use_gpu is not False else "cpu")


def starts_from_model(experiment: Experiment) -> bool:
    return experiment.init.model is not None


def source_model(experiment: Experiment) -> GenerativeModel:
    """The model of init.model. Raises UserError if it is gone, damaged or another one."""
    found = with_source({"init": experiment.init.model_dump()})
    assert found is not None
    return load_model(found.folder)


def source_parts(experiment: Experiment) -> PartBank:
    """The parts of init.model, an NP-DRAW model. Raises UserError as `source_model`."""
    model = source_model(experiment)
    assert isinstance(model, NPDraw)
    return model.bank


def start_weights(experiment: Experiment, bank: PartBank) -> dict[str, Tensor]:
    """The state dict that the run's model starts with. bank: of the run, the model's parts first."""
    return grown(ModelSpec.of(experiment), source_model(experiment).state_dict(), bank.parts)


def below(weights: dict[str, Tensor], prefix: str = "") -> Weights:
    """The state dict of the module at `prefix` (such as "prior."), as arrays."""
    start = len(prefix)
    return {name[start:]: value.numpy() for name, value in weights.items() if name.startswith(prefix)}


def as_tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in weights.items()}
