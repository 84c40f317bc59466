"""Turns a user's picture of any size and mode into an image of a model's shape.

The image has 8 bits per channel, is upright, has a background where the picture was transparent, and is
padded or cropped to the shape.
Shapes: C channels (1 or 3), H x W pixels of the image, h x w of the picture.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pbm", ".avif", ".heic", ".heif"),  # Pillow may not read the last three
)
MAX_PIXELS = 100_000_000  # a picture with more is rejected after reading its header, before it is decoded
LARGE = 1 << 20  # a padded or cropped picture of more pixels is first shrunk by a whole factor, then resized
SPARE = 4  # the shrunk picture is at least this many times as wide as the image
BANDS = (1, 3, 4)  # numbers of bands of an array: grey, colour, colour with transparency
GREY = ("1", "L", "F")  # modes without colour, in addition to the modes that begin with I
TURNS = {  # EXIF orientation -> the operation that puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]


def is_picture(path: str) -> bool:
    """Whether a path has a picture's suffix, and neither the file nor a folder of the path is hidden.

    Programs keep thumbnails in hidden folders. `@eaDir`, used by Synology disks, also counts as hidden.
    """
    hidden = any(part.startswith(".") or part == "@eaDir" for part in path.split("/"))
    return path.lower().endswith(SUFFIXES) and not hidden


class BadPicture(ValueError):
    """A picture cannot be used. The message is the reason."""


@dataclass(frozen=True)
class Frame:
    """The shape of an image and how a picture is fitted into it.

    shape: (C, H, W). background: colour behind the picture, a name or #rrggbb. fit: `pad` keeps the whole
    picture, `crop` only its centre. most: largest side of that centre, in pixels of the picture.
    """

    shape: tuple[int, int, int]
    background: str = "white"
    fit: Literal["pad", "crop"] = "pad"
    most: int | None = None

    @property
    def mode(self) -> str:
        return "L" if self.shape[0] == 1 else "RGB"

    def box(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the box around a picture of `size`, or of its centre, with the image's shape."""
        _, height, width = self.shape
        scales = size[0] / width, size[1] / height
        scale = (
            max(scales) if self.fit == "pad" else min(*scales, (self.most or max(size)) / max(width, height))
        )
        return max(round(scale * width), 1), max(round(scale * height), 1)


def read_picture(source: bytes | Path, frame: Frame) -> NDArray[np.uint8]:
    """An encoded picture or the path of its file -> (C, H, W). Raises BadPicture."""
    with open_picture(source) as picture:
        if picture.width * picture.height > LARGE and frame.most is None:
            side = SPARE * max(frame.shape[1:])
            picture.draft(None, (side, side))  # a JPEG is shrunk while it is decoded
        return to_image(picture, frame)


def open_picture(
    source: bytes | Path, formats: tuple[str, ...] | None = None, most: int = MAX_PIXELS
) -> Image.Image:
    """Opens a picture and reads only its header. Raises BadPicture.

    formats: allowed formats by Pillow's names; all if None. most: largest number of pixels.
    """
    with _reading():
        try:
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        except Image.DecompressionBombError:
            raise BadPicture(f"more than the limit of {most:,} pixels") from None
        except UnidentifiedImageError:
            known = ", ".join(formats or ("the known formats",))
            raise BadPicture(f"unreadable image, which is none of {known}") from None
        if picture.width * picture.height > most:
            picture.close()
            raise BadPicture(f"{picture.width} x {picture.height} pixels, more than the limit of {most:,}")
        return picture


def to_image(picture: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """A picture of any mode -> (C, H, W), resized only if it has another size. Raises BadPicture."""
    with _reading():
        return _framed(upright(picture), frame)


def from_array(values: NDArray[Any], frame: Frame) -> NDArray[np.uint8]:
    """(C, H, W), (H, W, C) or (H, W), bool, uint8 or floats in [0, 1] -> (C, H, W). Raises BadPicture."""
    if (fault := pixel_fault(values)) is not None:
        raise BadPicture(fault)
    if values.shape == frame.shape:
        return to_bytes(values)
    return to_image(array_picture(values, frame.shape[0]), frame)


def array_picture(values: NDArray[Any], channels: int | None = None) -> Image.Image:
    """(C, H, W), (H, W, C) or (H, W) without a `pixel_fault` -> a picture of mode L, RGB or RGBA.

    channels: the expected number of channels. A first axis of this size is the channel axis, even if the
    last one could be it too. Raises BadPicture on any other shape.
    """
    pixels = values
    if pixels.ndim == 3 and (
        pixels.shape[0] == channels or (pixels.shape[0] in BANDS and pixels.shape[2] not in BANDS)
    ):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not pixels.size or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in BANDS)):
        raise BadPicture(f"the shape {values.shape}; give (H, W), (H, W, C) or (C, H, W)")
    return Image.fromarray(np.ascontiguousarray(to_bytes(pixels)))


def pixel_fault(values: Any) -> str | None:
    """The reason why an array or tensor is invalid; None if it is bool, uint8 or floats in [0, 1]."""
    kind = str(values.dtype).removeprefix("torch.")
    if kind in ("bool", "uint8"):
        return None
    if not kind.startswith(("float", "bfloat")):
        return f"values of type {kind}; give uint8, or floats in [0, 1]"
    if not math.prod(values.shape) or getattr(values, "is_meta", False):
        return None
    low, high = float(values.min()), float(values.max())  # both are NaN if any value is NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        return "NaN or infinite values"
    if low < 0 or high > 1:
        return f"floats outside [0, 1], {low:g} to {high:g}; scale them, or give uint8"
    return None


def to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels of any shape without a `pixel_fault` -> uint8."""
    return values if values.dtype == np.uint8 else _rounded(values * 255)


def _rounded(values: NDArray[Any]) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = np.rint(values).astype(np.uint8)
    return whole


def is_grey(picture: Image.Image) -> bool | None:
    """Whether a picture has no colours, according to its header; None if only its pixels show it."""
    if picture.has_transparency_data:
        return None
    return picture.mode in GREY or picture.mode.startswith("I")


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture once it is upright. Only of a JPEG are EXIF data read for it."""
    width, height = picture.size
    turn = _turn(picture) if picture.format in ("JPEG", "MPO") else None  # a PNG would be decoded for them
    return (height, width) if turn in SIDEWAYS else (width, height)


def upright(picture: Image.Image) -> Image.Image:
    """The decoded picture, turned by its EXIF orientation, of mode L, RGB or RGBA. Raises BadPicture."""
    with _reading():
        picture.load()
        turn = _turn(picture)  # before the conversion, which loses EXIF data
        plain = _eight_bits(picture)
        return plain if turn is None else plain.transpose(turn)


def opaque(picture: Image.Image, background: str, mode: str) -> Image.Image:
    """Converts a result of `upright` to `mode` (L or RGB), with a background where it was transparent."""
    if picture.mode == "RGBA":
        below = Image.new("RGBA", picture.size, background)
        picture = Image.alpha_composite(below, picture).convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data raise errors of any type; the pixels may be intact
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A decoded picture of any mode -> L, RGB or RGBA."""
    mode = picture.mode
    if mode in ("L", "RGB", "RGBA") and not ("transparency" in picture.info and mode != "RGBA"):
        return picture
    if mode == "F" or mode.startswith("I"):
        return Image.fromarray(_grey_bytes(np.asarray(picture)))
    if mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, rgb, outputMode="RGB")
        assert converted is not None, "the conversion is not in place"
        return converted
    if mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if mode == "1" else "RGB")


def _grey_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit integers, floats in [0, 1] or floats in [0, 255] -> uint8."""
    low, high = float(values.min()), float(values.max())
    of_floats = 1.0 if high <= 1 else 255.0
    most = 65535.0 if np.issubdtype(values.dtype, np.integer) else of_floats
    if not (low >= 0 and high <= most):
        raise BadPicture(f"values from {low:g} to {high:g}, which are not shades of grey")
    return _rounded(values * (255 / most))


def _framed(picture: Image.Image, frame: Frame) -> NDArray[np.uint8]:
    """A picture that `upright` returned -> (C, H, W)."""
    _, height, width = frame.shape
    if picture.size == (width, height):
        return _pixels(opaque(picture, frame.background, frame.mode))
    box = frame.box(picture.size)
    if frame.fit == "crop":
        left, top = (round((whole - side) / 2) for whole, side in zip(picture.size, box, strict=True))
        # Crop before `resize`, since the filter of `resize(box=...)` reads pixels outside the box.
        picture = picture.crop((left, top, left + box[0], top + box[1]))
    factor = max(box) // (SPARE * max(width, height))
    if box[0] * box[1] > LARGE and factor > 1:
        picture = picture.reduce(factor)
        box = picture.size if frame.fit == "crop" else frame.box(picture.size)
    flat = opaque(picture, frame.background, frame.mode)
    if flat.size != box:
        page = Image.new(frame.mode, box, frame.background)
        page.paste(flat, ((box[0] - flat.width) // 2, (box[1] - flat.height) // 2))
        flat = page
    return _pixels(flat.resize((width, height), Image.Resampling.BILINEAR))


def _pixels(flat: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(flat)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@contextmanager
def _reading() -> Iterator[None]:
    """Turns any error into a BadPicture, and hides Pillow's warnings about EXIF data and large files."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    except BadPicture:
        raise
    except Exception as error:  # Pillow's plug-ins raise errors of any type
        raise BadPicture(f"unreadable image: {error}") from None
