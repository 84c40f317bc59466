"""Uploaded pictures of any size and kind, as images of a model's shape.

Bytes and pixels are counted before anything is decoded. Shapes: C channels, H x W pixels.
"""

import io

import torch
from PIL import Image, ImageOps
from torch import Tensor

from npdraw_dist.core.any_image import opaque
from npdraw_dist.data.readers.decode import fit

MAX_BYTES = 8 << 20
MAX_PIXELS = 16_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


class NotAPicture(ValueError):
    """The reason why the bytes cannot be used, for the person who sent them."""


def read_picture(
    content: bytes, shape: tuple[int, int, int], invert: bool = False, background: float = 0.0
) -> Tensor:
    """An encoded picture -> uint8 (1, C, H, W): its centre square, grey or colour as the model needs.

    Transparent pixels become background: 0.0 black, 1.0 white. invert: dark becomes bright.
    Raises NotAPicture.
    """
    flat = flattened(open_picture(content), shape[0], invert, background)
    return torch.tensor(fit(flat, shape))[None]


def open_picture(content: bytes) -> Image.Image:
    """An encoded picture, upright, of 8 bits a channel. Raises NotAPicture."""
    if not content:
        raise NotAPicture("the file is empty")
    if len(content) > MAX_BYTES:
        raise NotAPicture(f"{len(content):,} bytes; {MAX_BYTES:,} are the limit")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise NotAPicture(
                    f"{picture.width} x {picture.height} pixels; {MAX_PIXELS:,} pixels are the limit"
                )
            if picture.mode.startswith(("I", "F")):
                raise NotAPicture(f"mode {picture.mode}; 8 bits a channel are needed")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return upright if upright.has_transparency_data else upright.convert(_plain(upright.mode))
    except NotAPicture:
        raise
    except Exception as error:  # PIL's plug-ins raise errors of any type
        reason = str(error) if "BytesIO" not in str(error) else "none of " + ", ".join(FORMATS)
        raise NotAPicture(f"no readable picture: {reason}") from None


def _plain(mode: str) -> str:
    return "L" if mode in ("1", "L") else "RGB"


def flattened(picture: Image.Image, channels: int, invert: bool, background: float) -> Image.Image:
    """Of mode L or RGB, inverted if asked for; what is transparent becomes background, 0.0 or 1.0."""
    clear = 255 if invert == (background == 0) else 0  # before inversion
    flat = opaque(picture, clear).convert("L" if channels == 1 else "RGB")
    return ImageOps.invert(flat) if invert else flat
