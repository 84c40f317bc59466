"""Trained models: which folder, loaded and checked."""

from pathlib import Path

import torch

from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.model_files import model_folder
from npdraw_dist.nn import hub
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.hub import load_from
from npdraw_dist.nn.npdraw import NPDraw

RUNS = "runs"  # the default --storage of `train`


def latest_model() -> str:
    """The model of the run under ./runs that finished last. Raises UserError if there is none."""
    models = sorted(Path(RUNS).glob("*/model/config.json"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(
            f"no --model given, and no trained model under {RUNS}/: train the default one in about "
            "2 minutes with `python -m npdraw_dist.train`, then give this command again"
        )
    folder = str(models[-1].parent)
    print(f"no --model given: taking the last run, {folder}")
    return folder


def chosen_model(model: str | None) -> str:
    """The model folder or URI of --model: a folder, a run, a URI or an id of the hub; None: the last run's.

    Raises UserError if there is no model.
    """
    return latest_model() if model is None else model_folder(model, f"--model {model}")


def load_model(folder: str) -> GenerativeModel:
    """The model of any kind at what --model takes (`nn.hub.load`), in eval mode.

    Raises UserError if there is no model that this version can read.
    """
    said = f"--model {folder}"
    return load_from(model_folder(folder, said), said)


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


def load_npdraw(folder: str) -> NPDraw:
    """`load_model` of an NP-DRAW model. Raises UserError for other kinds: they have no parts to edit."""
    model = load_model(folder)
    if not isinstance(model, NPDraw):
        raise UserError(f"--model {folder} is of kind {model.spec.kind}, which draws no parts")
    return model
