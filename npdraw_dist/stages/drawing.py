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
from npdraw_dist.nn.npdraw import NPDraw

DRAWINGS = 8  # drawings side by side in the animation


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


def write_samples(model: NPDraw, folder: Path, n: int, seed: int, temperature: float) -> None:
    """Draws n samples: samples.png, generation.gif, samples.npz (images, canvas, whether, where, what)."""
    generator = torch.Generator(model.device).manual_seed(seed)
    z = model.sample_prior(n, generator, temperature)
    canvases = model.render(z)
    images = model.decode(canvases)
    save_samples(folder / "samples.png", images.cpu(), canvases.cpu())
    few = z[:DRAWINGS]
    steps = model.render(few, steps=True)
    frames = model.decode(steps.flatten(0, 1)).view(*steps.shape[:2], *images.shape[1:])
    corners = model.grid.corners.to(few.where.device)[few.where]
    save_generation(
        folder / "generation.gif",
        steps.cpu(),
        few.whether.cpu(),
        corners.cpu(),
        model.grid.patch,
        frames.cpu(),
    )
    arrays = {"images": images, "canvas": canvases, "whether": z.whether, "where": z.where, "what": z.what}
    numbers: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(folder / "samples.npz", **numbers)
