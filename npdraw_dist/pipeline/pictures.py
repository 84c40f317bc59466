"""Pictures of a trained model as files: samples, their animation, and reconstructions."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.core.errors import UserError
from npdraw_dist.data.parses import Parses
from npdraw_dist.measure.animation import GROWING_FRAMES, generation_gif
from npdraw_dist.measure.distances import neighbours
from npdraw_dist.measure.pictures import PREVIEWS, save_neighbours, save_reconstructions, save_samples
from npdraw_dist.nn.generative import GenerativeModel, SampleTrace
from npdraw_dist.nn.npdraw import NPDraw

ALIGNED_FRAMES = 16  # a drawing place by place looks like a printer with a frame for each part
SEARCHED = 10_000  # training images among which the nearest are looked for
SEARCHED_BYTES = 256 << 20


@contextmanager
def local_folder(out: str) -> Iterator[Path]:
    """The folder of a command's --out, made if it is missing. Raises UserError if it cannot be written."""
    if not out:
        raise UserError("--out is empty; is a variable unset?")
    if "://" in out:
        raise UserError(f"--out {out} is a URI; pictures go to a local folder")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error}") from None


def animate(model: GenerativeModel, trace: SampleTrace) -> bytes:
    """A GIF in which the canvas grows part by part above the decoded image."""
    boxes = (trace.corners.cpu(), trace.sides.cpu())
    aligned = isinstance(model, NPDraw) and model.spec.aligned
    most = ALIGNED_FRAMES if aligned else GROWING_FRAMES
    return generation_gif(trace.steps.cpu(), trace.drawn.cpu(), *boxes, trace.decoded.cpu(), most)


def write_reconstructions(model: NPDraw, images: Tensor, file: Path | io.BytesIO) -> None:
    """uint8 images (N, C, H, W): the first 16 beside the canvas and the image of their likeliest z and u."""
    x = model.as_input(images[:PREVIEWS])
    drawn = model.drawings(x)
    save_reconstructions(file, x.cpu(), drawn.canvas.cpu(), drawn.images.cpu())


def write_neighbours(samples: Tensor, train: Parses, seed: int, path: Path) -> None:
    """The first 16 of samples (N, C, H, W), their nearest training images, and 16 random ones.

    They are looked for among at most SEARCHED images, row groups of `train`. Raises ValueError if it has no
    image.
    """
    samples = samples[:PREVIEWS]
    limit = min(SEARCHED, max(SEARCHED_BYTES // samples[0].numel(), PREVIEWS))
    save_neighbours(path, samples, neighbours(samples, train.images(limit, seed), PREVIEWS, seed))


def write_samples(model: GenerativeModel, folder: Path, n: int, seed: int, temperature: float) -> Tensor:
    """Writes n samples: samples.png, generation.gif and samples.npz (images, codes, canvas if any).

    Returns their images (n, C, H, W) on the CPU.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    trace = model.sample_trace(n, generator, temperature)
    canvas = None if trace.canvas is None else trace.canvas.cpu()
    images = trace.images.cpu()
    save_samples(folder / "samples.png", images, canvas)
    (folder / "generation.gif").write_bytes(animate(model, trace))
    arrays = {"images": images, **trace.codes}
    if canvas is not None:
        arrays["canvas"] = canvas
    numbers: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(folder / "samples.npz", **numbers)
    return images
