"""Files and arrays as uint8 images of one shape; what cannot be one is rejected with a reason.

Shapes: N images, C channels, H x W pixels, S side of the square.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.core.any_image import pixel_fault, to_bytes
from npdraw_dist.data.rows import Reject, Rows

CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}  # of PIL's 8-bit modes without alpha; a palette is colour


class BadImage(Exception):
    """The reason why a row cannot be used."""


def fit(image: Image.Image, shape: tuple[int, int, int], crop: int | None = None) -> NDArray[np.uint8]:
    """PIL image -> (C, H, W) uint8: the centre square (at most `crop` pixels wide), resized bilinearly.

    An image that has the shape already is not changed. Raises BadImage on other channels.
    """
    channels, height, width = shape
    if CHANNELS.get(image.mode) != channels:
        raise BadImage(f"mode {image.mode}, which is not {channels} channel(s) of 8 bits")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        side = min(*image.size, crop or max(image.size))
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        # Cropped first: the filter of `resize(box=...)` reads pixels beyond the box.
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode(content: bytes, shape: tuple[int, int, int], crop: int | None = None) -> NDArray[np.uint8]:
    """An encoded image (PNG, JPEG, ...) -> (C, H, W) uint8, as `fit` does. Raises BadImage.

    An image above PIL's limit against decompression bombs is rejected, not decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise BadImage(f"{image.width}x{image.height} pixels, more than the limit of {limit}")
            image.load()
            return fit(image, shape, crop)
    except BadImage:
        raise
    except Exception as error:  # PIL's plug-ins raise errors of any type
        raise BadImage(f"unreadable image: {error}") from None


def from_array(values: NDArray[Any], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(C, H, W), (H, W, C) or (H, W), bool, uint8 or floats in [0, 1] -> (C, H, W) uint8, as `fit` does."""
    channels = shape[0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.size == 0:
        raise BadImage(f"shape {values.shape}, which is no image")
    if values.shape[0] != channels and values.shape[2] == channels:
        values = values.transpose(2, 0, 1)
    if values.shape[0] != channels:
        raise BadImage(f"shape {values.shape}, which has not {channels} channel(s)")
    if (fault := pixel_fault(values)) is not None:
        raise BadImage(fault)
    values = to_bytes(values)
    if values.shape == shape:
        return values
    picture = values[0] if channels == 1 else values.transpose(1, 2, 0)
    return fit(Image.fromarray(np.ascontiguousarray(picture)), shape)


class RowBuilder:
    """Collects the good rows of a shard and the rejects."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._labels: list[int] = []
        self._rejects: list[Reject] = []

    def add(self, name: str, label: int, read: Callable[[], NDArray[np.uint8]]) -> None:
        """Adds the image that `read` gives, or rejects the row if it raises BadImage."""
        if name in self._images:
            return self.reject(name, "duplicate id")
        try:
            image = read()
        except BadImage as error:
            return self.reject(name, str(error))
        self._images[name] = image
        self._labels.append(label)
        return None

    def reject(self, name: str, reason: str) -> None:
        self._rejects.append(Reject(name, reason))

    def rows(self) -> Rows:
        images = (
            np.stack(list(self._images.values())) if self._images else np.zeros((0, *self._shape), np.uint8)
        )
        return Rows(list(self._images), images, np.array(self._labels, dtype=np.int64), self._rejects)
