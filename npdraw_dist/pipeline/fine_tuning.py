"""What the stages of a run that starts from a trained model (`init.model`) take from it."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.source_model import with_source
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartBank
from npdraw_dist.nn.baselines.base import Baseline
from npdraw_dist.nn.growth import grown
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.models import load_model, load_npdraw

Weights = dict[str, NDArray[Any]]


def starts_from_model(experiment: Experiment) -> bool:
    return experiment.init.model is not None


def source_model(experiment: Experiment) -> NPDraw:
    """The model of parts of init.model. Raises UserError if it is gone, damaged or another one."""
    return load_npdraw(_folder(experiment))


def _folder(experiment: Experiment) -> str:
    found = with_source({"init": experiment.init.model_dump()})
    assert found is not None
    return found.folder


def baseline_weights(experiment: Experiment) -> Weights | None:
    """The weights of the baseline of init.model; None without one. Raises UserError as `source_model`."""
    if not starts_from_model(experiment):
        return None
    model = load_model(_folder(experiment))
    assert isinstance(model, Baseline)
    return below(model.state_dict(), "")


def start_weights(experiment: Experiment, bank: PartBank) -> dict[str, Tensor]:
    """The state dict that the run's model starts with. bank: of the run, the model's parts first."""
    return grown(ModelSpec.of(experiment), source_model(experiment).state_dict(), bank.parts)


def below(weights: dict[str, Tensor], prefix: str) -> Weights:
    """The state dict of the module at `prefix` (such as "prior."), as arrays, which travel to workers."""
    start = len(prefix)
    return {name[start:]: value.numpy() for name, value in weights.items() if name.startswith(prefix)}


def as_tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in weights.items()}
