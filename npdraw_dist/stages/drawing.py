"""Samples of a model as files: the pictures a person looks at and the numbers behind them."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow.fs import FileType
from pydantic import ValidationError
from safetensors import SafetensorError

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import local_copy, open_filesystem
from npdraw_dist.measure.pictures import save_generation, save_samples
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.models import KINDS
from npdraw_dist.nn.npdraw import NPDraw


def load_model(folder: str) -> GenerativeModel:
    """The model, of any kind, of a folder or URI that `train` or `save_pretrained` wrote.

    Raises UserError where it is none.
    """
    filesystem, path = open_filesystem(folder)
    if filesystem.get_file_info(f"{path}/config.json").type != FileType.File:
        raise UserError(
            f"--model {folder} is no model folder (no config.json); train one: python -m npdraw_dist.train"
        )
    try:
        with local_copy(filesystem, path) as local:
            return _load(local, folder)
    except (SafetensorError, ValidationError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {folder} is damaged or of another version: {reason}") from None


def load_npdraw(folder: str) -> NPDraw:
    """The model of a folder, which must be NP-DRAW's: it has parts to edit. Raises UserError."""
    model = load_model(folder)
    if not isinstance(model, NPDraw):
        raise UserError(f"--model {folder} is of kind {model.spec.kind}, which draws no parts")
    return model


def _load(path: Path, shown: str) -> GenerativeModel:
    config = json.loads((path / "config.json").read_text())
    spec = config.get("spec") if isinstance(config, dict) else None
    if not isinstance(spec, dict):
        raise UserError(f"--model {shown} holds another kind of model: its config.json has no spec")
    kind = spec.get("kind")
    if kind not in KINDS:
        raise UserError(f"--model {shown} holds a model of kind {kind!r} (known: {', '.join(KINDS)})")
    with contextlib.redirect_stdout(io.StringIO()):  # the hub's mixin prints where it loads from
        return KINDS[kind].from_pretrained(path, strict=True).eval()


def write_samples(model: GenerativeModel, folder: Path, n: int, seed: int, temperature: float) -> None:
    """Draws n samples: samples.png, generation.gif, samples.npz (images, codes, canvas if there is one)."""
    generator = torch.Generator(model.device).manual_seed(seed)
    drawing = model.draw(n, generator, temperature)
    canvas = None if drawing.canvas is None else drawing.canvas.cpu()
    save_samples(folder / "samples.png", drawing.images.cpu(), canvas)
    save_generation(
        folder / "generation.gif",
        drawing.steps.cpu(),
        drawing.drawn.cpu(),
        drawing.corners.cpu(),
        drawing.sides.cpu(),
        drawing.decoded.cpu(),
    )
    arrays = {"images": drawing.images, **drawing.codes}
    if drawing.canvas is not None:
        arrays["canvas"] = drawing.canvas
    numbers: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(folder / "samples.npz", **numbers)
