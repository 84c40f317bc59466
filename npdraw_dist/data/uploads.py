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
            clear = 255 if invert == (background == 0) else 0  # before inversion
            flat = opaque(upright, clear).convert("L" if shape[0] == 1 else "RGB")
    except NotAPicture:
        raise
    except Exception as error:  # PIL's plug-ins raise errors of any type
        reason = str(error) if "BytesIO" not in str(error) else "none of " + ", ".join(FORMATS)
        raise NotAPicture(f"no readable picture: {reason}") from None
    pixels = torch.tensor(fit(ImageOps.invert(flat) if invert else flat, shape))
    return pixels[None]
