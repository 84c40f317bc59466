"""Turns arrays, tensors and PIL images into batches and canvases, and tensors into PIL images, PNG and HTML.

The phrase "images of any kind" means arrays (NumPy arrays or objects with `__array__`), tensors, PIL images,
or sequences of these.
Shapes: B images, C channels (1 or 3), H x W image.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from npdraw_dist.core.pictures import BadPicture, Frame, is_grey, pixel_fault, to_image
from npdraw_dist.system.errors import UserError

Pixels = TypeVar("Pixels", Tensor, NDArray[np.uint8])
KINDS = "arrays, tensors or PIL images, or a list of them"
SHOWN = 128  # least length of the longer side of an image in HTML, px


def to_float(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (..., H, W) in 0..255 -> float32 in [0, 1]."""
    tensor = images if isinstance(images, Tensor) else torch.tensor(images)
    return tensor.float() / 255


def ink(pixels: Pixels, background: float) -> Pixels:
    """The ink |pixels - background| of pixels of any shape, float in [0, 1] or uint8.

    Applied twice, it returns the pixels, up to rounding. background: 0.0 (black) or 1.0 (white).
    """
    if background == 0:
        return pixels
    return (255 if pixels.dtype in (torch.uint8, np.uint8) else 1) - pixels


def to_canvas(images: Tensor, downscale: int) -> Tensor:
    """Float (B, C, H, W) -> (B, C, H / downscale, W / downscale) by area averaging."""
    return images if downscale == 1 else F.avg_pool2d(images, downscale)


def canvas_bytes(images: Tensor, downscale: int) -> Tensor:
    """uint8 images (N, C, H, W) -> unbinarised uint8 canvases (N, C, h, w), for bank and parser."""
    return images if downscale == 1 else to_canvas(images.float(), downscale).round().to(torch.uint8)


def to_batch(images: Any, shape: tuple[int, int, int], background: float = 0.0) -> Tensor:
    """One or more images -> (B, C, H, W) of `shape` (C, H, W). PIL images become uint8; floats stay floats.

    An array or tensor is (C, H, W), (H, W, C) or, if grey, (H, W), or a batch of these. Its values are bool,
    uint8 or floats in [0, 1]. Transparent pixels of a PIL image become `background`, 0.0 black or 1.0 white.
    Raises UserError on any other kind, size, type or range.
    """
    if isinstance(images, Image.Image):
        return _of_picture(images, shape, background)
    if isinstance(images, Tensor) or hasattr(images, "__array__"):
        values = images if isinstance(images, Tensor) else np.asarray(images)
        if (fault := pixel_fault(values)) is not None:
            raise UserError(f"the images have {fault}")
        tensor = values if isinstance(values, Tensor) else torch.tensor(values)
        return _as_batch(tensor.byte() * 255 if tensor.dtype == torch.bool else tensor, shape)
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        hint = "; open the file with PIL.Image.open" if isinstance(images, str | bytes) else ""
        raise UserError(f"images must be {KINDS}, not {type(images).__name__}{hint}")
    if not images:
        raise UserError("there is no image")
    found = [to_batch(image, shape, background) for image in images]
    if len({(image.dtype, image.device) for image in found}) > 1:
        raise UserError("the images of a list must be all pictures (uint8) or all floats, on one device")
    return torch.cat(found)


def shape_of(images: Any) -> tuple[int, int, int]:
    """(C, H, W) of images of any kind. Raises UserError if they have no such shape, or several."""
    if isinstance(images, Image.Image):
        return (1 if is_grey(images) else 3, images.height, images.width)
    if not hasattr(images, "shape"):
        if not isinstance(images, Sequence) or isinstance(images, str | bytes) or not images:
            raise UserError(f"images must be {KINDS}, not {type(images).__name__}")
        shapes = sorted({shape_of(image) for image in images})
        if len(shapes) > 1:
            raise UserError(f"the images have {len(shapes)} shapes, such as {shapes[0]} and {shapes[-1]}")
        return shapes[0]
    sides = tuple(images.shape)[-3:] if len(images.shape) == 4 else tuple(images.shape)
    if len(sides) == 2 or (len(sides) == 3 and not {sides[0], sides[-1]} & {1, 3}):
        sides = (1, *sides[-2:])
    if len(sides) != 3:
        raise UserError(f"images must be (B, C, H, W), (B, H, W, C) or (B, H, W), not {tuple(images.shape)}")
    return sides if sides[0] in (1, 3) else (sides[2], *sides[:2])


def require_images(x: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises UserError if x is not (B, C, H, W) of `shape` (C, H, W) with B >= 1."""
    if x.ndim != 4 or tuple(x.shape[1:]) != shape:
        one = "; pass one image as image[None]" if tuple(x.shape) == shape else ""
        raise UserError(f"images must be (B, {', '.join(map(str, shape))}), not {tuple(x.shape)}{one}")
    if not len(x):
        raise UserError("there is no image")


def _as_batch(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    last = (height, width, channels)
    if tuple(x.shape) == shape:
        x = x[None]
    elif tuple(x.shape) == last:
        x = x.permute(2, 0, 1)[None]
    elif x.ndim == 4 and tuple(x.shape[1:]) == last and last != shape:
        x = x.permute(0, 3, 1, 2)
    elif channels == 1 and x.ndim in (2, 3) and tuple(x.shape[-2:]) == (height, width):
        x = x.reshape(-1, 1, height, width)
    require_images(x, shape)
    return x


def _of_picture(picture: Image.Image, shape: tuple[int, int, int], background: float) -> Tensor:
    _, height, width = shape
    if picture.size != (width, height):
        raise UserError(
            f"a picture has {picture.width}x{picture.height} pixels, and the model draws {width}x{height}; "
            f"crop it, or call picture.resize(({width}, {height}))"
        )
    try:
        return torch.tensor(to_image(picture, Frame(shape, "white" if background else "black")))[None]
    except BadPicture as error:
        raise UserError(f"a picture cannot be used: {error}") from None


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) or (C, H, W), floats in [0, 1] or uint8 -> PIL images of mode L (if C is 1) or RGB."""
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise UserError(f"images must be (B, 1 or 3, H, W), not {tuple(images.shape)}")
    if batch.dtype != torch.uint8:
        batch = (batch.detach().float().clamp(0, 1) * 255).round().byte()
    rows = batch.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(row[..., 0] if row.shape[2] == 1 else row)) for row in rows]


def inline(image: Tensor, least: int = SHOWN, title: str = "") -> str:
    """(C, H, W) in [0, 1] -> an HTML <img> with its PNG, enlarged by a whole factor to `least` px or more."""
    (picture,) = to_pil(image)
    factor = math.ceil(least / max(picture.size))
    data = base64.b64encode(png(image)).decode()
    return (
        f'<img src="data:image/png;base64,{data}" width="{factor * picture.width}" alt="{title}" '
        f'title="{title}" style="image-rendering: pixelated; margin: 2px">'
    )


def png(image: Tensor, factor: int = 1) -> bytes:
    """(C, H, W) in [0, 1] -> a PNG file, enlarged `factor` times."""
    (picture,) = to_pil(image)
    file = io.BytesIO()
    picture.resize((factor * picture.width, factor * picture.height), 0).save(file, "PNG")
    return file.getvalue()


def tiled(images: Tensor, columns: int) -> Tensor:
    """(B, C, H, W) -> (C, rows * H, columns * W) in reading order; empty tiles of the last row are 0."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    cells = images.new_zeros(rows * columns, channels, height, width)
    cells[:count] = images
    grid = cells.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)
