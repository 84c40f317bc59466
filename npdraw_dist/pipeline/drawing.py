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
from torch import Tensor

from npdraw_dist.config.registry import KINDS
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import local_copy, open_filesystem
from npdraw_dist.measure.pictures import PREVIEWS, generation_gif, save_reconstructions, save_samples
from npdraw_dist.nn.generative import Drawing, GenerativeModel
from npdraw_dist.nn.models import model_class
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import observe

RUNS = "runs"  # where `train` puts its runs, unless told otherwise


def latest_model() -> str:
    """The model of the run under ./runs that finished last. Raises UserError where there is none."""
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
        return model_class(kind).from_pretrained(path, strict=True).eval()


def animate(drawing: Drawing) -> bytes:
    """A GIF of drawings growing step by step, the decoded image beside each."""
    boxes = (drawing.corners.cpu(), drawing.sides.cpu())
    return generation_gif(drawing.steps.cpu(), drawing.drawn.cpu(), *boxes, drawing.decoded.cpu())


def as_seen(model: NPDraw, images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> what the posterior was trained on: x > 0.5 where images are binary, else x."""
    return observe(images.to(model.device), "none" if model.spec.binarize == "none" else "threshold", None)


def write_reconstructions(model: NPDraw, images: Tensor, path: Path) -> None:
    """uint8 images (N, C, H, W): the first 16 beside the canvas and the image of their most likely z."""
    x = as_seen(model, images[:PREVIEWS])
    canvases = model.render(model.encode(x))
    save_reconstructions(path, x, canvases, model.decode(canvases))


def write_samples(model: GenerativeModel, folder: Path, n: int, seed: int, temperature: float) -> None:
    """Draws n samples: samples.png, generation.gif, samples.npz (images, codes, canvas if there is one)."""
    generator = torch.Generator(model.device).manual_seed(seed)
    drawing = model.draw(n, generator, temperature)
    canvas = None if drawing.canvas is None else drawing.canvas.cpu()
    save_samples(folder / "samples.png", drawing.images.cpu(), canvas)
    (folder / "generation.gif").write_bytes(animate(drawing))
    arrays = {"images": drawing.images, **drawing.codes}
    if drawing.canvas is not None:
        arrays["canvas"] = drawing.canvas
    numbers: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(folder / "samples.npz", **numbers)
