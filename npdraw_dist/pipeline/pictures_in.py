"""Images of any Python kind as one array, and the settings that suit them, for `fit`.

Shapes: N images, C channels, S side of the square.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.core.any_image import opaque, pixel_fault, to_bytes
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.readers.decode import fit

SMALL, LARGE = 32, 64  # the sides that pictures of other sizes get
LARGEST_CANVAS = 36  # of an image that is its own canvas
BINARY, NEAR_BINARY = 0.02, 0.3  # shares of values that are neither near 0 nor near 1
PATCHES_OF_A_PART = 50
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Pictures:
    """images: (N, C, S, S) uint8, C 1 or 3. ids: N strings."""

    images: NDArray[np.uint8]
    ids: list[str]

    @property
    def on_white(self) -> bool:
        """Whether most pixels at the edges are bright."""
        rows, columns = self.images[..., [0, -1], :], self.images[..., [0, -1]]
        return float(rows.mean() + columns.mean()) / 2 > 127

    @property
    def shades(self) -> float:
        """The share of values that are neither near 0 nor near 1."""
        return float(((self.images > 25) & (self.images < 230)).mean())


def pictures_of(images: Any, image_size: int | None = None) -> Pictures:
    """Reads `images`: a folder, an array or tensor, a Ray Dataset, or any sequence of images.

    An array is (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1]. An item of a sequence, as
    of a torch Dataset, is an array, a tensor or a PIL image, alone or first in a tuple; of a Ray Dataset it
    is the column `image`. What is transparent becomes white. Pictures that are not square, or have different
    sizes, are cropped to the centre and resized to `image_size`, by default SMALL or LARGE.
    Raises UserError on anything else.
    """
    named = list(_items(images))
    if not named:
        raise UserError("there are no images to fit")
    opened = [(name, _picture(value, name)) for name, value in named]
    colour = any(picture.mode != "L" for _, picture in opened)
    sides = {side for _, picture in opened for side in picture.size}
    size = image_size or (sides.pop() if len(sides) == 1 and max(sides) <= LARGE else _size(opened))
    shape, mode = ((3, size, size), "RGB") if colour else ((1, size, size), "L")
    stacked = [fit(picture.convert(mode), shape) for _, picture in opened]
    return Pictures(np.stack(stacked), [name for name, _ in opened])


def _items(images: Any) -> Iterable[tuple[str, Any]]:
    """(id, image) of each."""
    if isinstance(images, str | Path):
        folder = Path(images).expanduser()
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{folder} has no image ({', '.join(sorted(SUFFIXES))})")
        yield from ((str(path.relative_to(folder)), path) for path in files)
        return
    if hasattr(images, "iter_rows"):  # a Ray Dataset
        images = [row["image"] for row in images.iter_rows()]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim not in (3, 4):
        raise UserError(f"images are (N, H, W), (N, H, W, C) or (N, C, H, W), not {tuple(images.shape)}")
    try:
        count = len(images)
    except TypeError:
        kind = type(images).__name__
        raise UserError(f"images are a folder, an array, a tensor or a sequence, not {kind}") from None
    for number in range(count):
        value = images[number]
        yield f"{number:08d}", value[0] if isinstance(value, tuple) else value


def _picture(value: Any, name: str) -> Image.Image:
    """As an image of mode L or RGB."""
    try:
        if isinstance(value, Path):
            with Image.open(value) as file:
                file.load()
                value = file.copy()
        if not isinstance(value, Image.Image):
            return _from_array(value, name)
    except OSError as error:
        raise UserError(f"image {name} is unreadable: {error}") from None
    if value.mode.startswith(("I", "F")):
        raise UserError(f"image {name} is of mode {value.mode}; 8 bits a channel are needed")
    if value.has_transparency_data:
        flat = opaque(value, 255)
        pixels = np.asarray(flat)
        return flat.convert("L") if (pixels == pixels[..., :1]).all() else flat
    return value.convert("L" if value.mode in ("1", "L") else "RGB")


def _from_array(value: Any, name: str) -> Image.Image:
    values = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[2] in (3, 4)):
        raise UserError(f"image {name} has the shape {np.shape(value)}; it is (H, W), (H, W, C) or (C, H, W)")
    if (fault := pixel_fault(values)) is not None:
        raise UserError(f"image {name} has {fault}")
    found = Image.fromarray(np.ascontiguousarray(to_bytes(values)))
    return _picture(found, name) if found.mode == "RGBA" else found


def _size(opened: list[tuple[str, Image.Image]]) -> int:
    """The side for pictures of different sizes, or of large ones."""
    return SMALL if np.median([min(picture.size) for _, picture in opened]) < 48 else LARGE


def suited(pictures: Pictures) -> tuple[str, dict[str, Any]]:
    """The preset for these pictures, and what differs from it."""
    count, channels, size, _ = pictures.images.shape
    scale = 1 if size <= LARGEST_CANVAS else 2
    if size % scale or size > 2 * LARGEST_CANVAS:
        raise UserError(f"image_size {size}: take at most {LARGEST_CANVAS}, or an even side up to 72")
    data = {"image_size": size, "channels": channels, "binarize": "none", "test_fraction": 0.0}
    grid = {"downscale": scale, "background": "white" if pictures.on_white else "black"}
    places, vae = (-(-size // scale // 4)) ** 2, {"likelihood": "logistic_mixture"}
    preset, parts = ("emoji" if scale == 1 else "emoji64"), 1000
    if channels == 1 and pictures.shades < NEAR_BINARY:
        preset, parts, vae = "digits", 100, {"likelihood": "bernoulli"}
        data["binarize"] = "threshold" if pictures.shades < BINARY else "dynamic"
    bank = {"size": max(min(parts, count * places // PATCHES_OF_A_PART), min(20, count))}
    settings = {"data": data, "grid": grid, "bank": bank, "vae": vae, "train": {"mirror": 0.0}}
    if preset != "digits":
        budgets: Mapping[str, Any] = {"images": 24_000, "plain_images": 2_400}
        settings |= {"vae": {**vae, **budgets}, "prior": {"images": 24_000}}
    return preset, {**settings, "eval": {"split": "valid"}, "scale": {"num_workers": 0}}
