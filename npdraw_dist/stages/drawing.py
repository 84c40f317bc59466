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

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import local_copy, open_filesystem
from npdraw_dist.measure.pictures import PREVIEWS, generation_gif, save_reconstructions, save_samples
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import observe

DRAWINGS = 8  # drawings side by side in the animation
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


def load_model(folder: str) -> NPDraw:
    """The model of a folder or URI that `train` or `save_pretrained` wrote.

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


def _load(path: Path, shown: str) -> NPDraw:
    config = json.loads((path / "config.json").read_text())
    if not isinstance(config, dict) or "spec" not in config:
        raise UserError(f"--model {shown} holds another kind of model: its config.json has no spec")
    with contextlib.redirect_stdout(io.StringIO()):  # the hub's mixin prints where it loads from
        return NPDraw.from_pretrained(path, strict=True).eval()


def animate(model: NPDraw, z: PartSequence) -> bytes:
    """A GIF of the drawings z growing step by step, the decoded image beside each."""
    steps = model.render(z, steps=True)
    frames = model.decode(steps.flatten(0, 1)).view(*steps.shape[:2], *model.spec.image_shape)
    corners = model.grid.corners.to(z.where.device)[z.where]
    return generation_gif(steps, z.whether, corners, model.grid.patch, frames)


def as_seen(model: NPDraw, images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> what the posterior was trained on: x > 0.5 where images are binary, else x."""
    return observe(images.to(model.device), "none" if model.spec.binarize == "none" else "threshold", None)


def write_reconstructions(model: NPDraw, images: Tensor, path: Path) -> None:
    """uint8 images (N, C, H, W): the first 16 beside the canvas and the image of their most likely z."""
    x = as_seen(model, images[:PREVIEWS])
    canvases = model.render(model.encode(x))
    save_reconstructions(path, x, canvases, model.decode(canvases))


def write_samples(model: NPDraw, folder: Path, n: int, seed: int, temperature: float) -> None:
    """Draws n samples: samples.png, generation.gif, samples.npz (images, canvas, whether, where, what)."""
    generator = torch.Generator(model.device).manual_seed(seed)
    z = model.sample_prior(n, generator, temperature)
    canvases = model.render(z)
    images = model.decode(canvases)
    save_samples(folder / "samples.png", images.cpu(), canvases.cpu())
    (folder / "generation.gif").write_bytes(animate(model, z[:DRAWINGS]))
    arrays = {"images": images, "canvas": canvases, "whether": z.whether, "where": z.where, "what": z.what}
    numbers: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(folder / "samples.npz", **numbers)
