"""Trained models: which folder, loaded and checked."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from pyarrow.fs import FileType
from pydantic import ValidationError
from safetensors import SafetensorError

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import local_copy, open_filesystem, read_bytes
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.models import model_class
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


def load_model(folder: str) -> GenerativeModel:
    """The model, of any kind, in a folder or URI that `train` or `save_pretrained` wrote; in eval mode.

    Raises UserError if the folder holds no model that this version can read.
    """
    kind = read_spec(folder).kind
    filesystem, path = open_filesystem(folder)
    with _readable(folder), local_copy(filesystem, path) as local, contextlib.redirect_stdout(io.StringIO()):
        # huggingface_hub prints where it loads from
        return model_class(kind).from_pretrained(local, strict=True).eval()


def read_spec(folder: str) -> ModelSpec | BaselineSpec:
    """What the config.json of a model folder or URI states. Raises UserError as `load_model` does."""
    filesystem, path = open_filesystem(folder)
    if filesystem.get_file_info(f"{path}/config.json").type != FileType.File:
        raise UserError(
            f"--model {folder} is no model folder (no config.json); train one: python -m npdraw_dist.train"
        )
    with _readable(folder):
        config = json.loads(read_bytes(filesystem, f"{path}/config.json"))
        spec = config.get("spec") if isinstance(config, dict) else None
        if not isinstance(spec, dict):
            raise UserError(f"--model {folder} holds another kind of model: its config.json has no spec")
        kind = spec.get("kind")
        if kind not in KINDS:
            raise UserError(f"--model {folder} holds a model of kind {kind!r} (known: {', '.join(KINDS)})")
        return (ModelSpec if kind == "npdraw" else BaselineSpec).model_validate(spec)


@contextlib.contextmanager
def _readable(folder: str) -> Iterator[None]:
    """Errors of a damaged model folder as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, ValidationError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"--model {folder} is damaged or of another version: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The first fact in the text of an error: pydantic and torch begin theirs with a title."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"config.json, {'.'.join(map(str, first['loc']))}: {first['msg']}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0]


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
