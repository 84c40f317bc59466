"""Reads the pixels of pictures, and computes the pixels that they must have."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from npdraw_dist.core.pages import GUTTER

Pixels = NDArray[np.int64]


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def few_colours(images: torch.Tensor) -> torch.Tensor:
    """Rounds to five levels a channel, so that the 256 colours of a GIF are enough."""
    return (images * 4).round() / 4


def rgb(picture: Image.Image | Path) -> Pixels:
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return rgb(opened)
    return np.asarray(picture.convert("RGB")).astype(np.int64)


def enlarged(image: torch.Tensor, factor: int) -> Pixels:
    """(C, H, W) -> the pixels that its tile must have, by a Kronecker product."""
    grey = np.round(image.numpy() * 255).astype(np.int64)
    planes = [np.kron(plane, np.ones((factor, factor), dtype=np.int64)) for plane in grey]
    return np.stack(planes * (3 // len(planes)), -1)


def cell(page: Pixels, row: int, column: int, side: int, origin: tuple[int, int] = (0, 0)) -> Pixels:
    """The tile of a sheet whose upper-left corner is at `origin` (x, y)."""
    top = origin[1] + GUTTER + row * (side + GUTTER)
    left = origin[0] + GUTTER + column * (side + GUTTER)
    return page[top : top + side, left : left + side]


def gif_frames(path: Path) -> tuple[list[Pixels], list[int]]:
    """The frames of an endless GIF, and how long each is shown, in ms."""
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        frames, durations = [], []
        for frame in ImageSequence.Iterator(gif):
            frames.append(rgb(frame))
            durations.append(int(frame.info["duration"]))
    return frames, durations


def margin_of(page: Pixels, columns: int, tile: int) -> int:
    """The width of the labels on the left."""
    return page.shape[1] - (columns * (tile + GUTTER) + GUTTER)


def found(page: Pixels, tile: Pixels) -> tuple[int, int]:
    """Top and left of the tile on the page. Fails unless the page shows it exactly once."""
    (height, width, _), colour = tile.shape, page @ [1, 256, 65536]
    inner = colour[: len(page) - height + 1, : page.shape[1] - width + 1]
    ys, xs = np.nonzero(inner == tile[0, 0] @ [1, 256, 65536])
    for y, x in ((height // 2, width // 2), (height - 1, width - 1)):
        same = colour[ys + y, xs + x] == tile[y, x] @ [1, 256, 65536]
        ys, xs = ys[same], xs[same]
    places = [(int(y), int(x)) for y, x in zip(ys, xs, strict=True)]
    (place,) = [(y, x) for y, x in places if (page[y : y + height, x : x + width] == tile).all()]
    return place


def cells(page: Pixels, images: torch.Tensor, factor: int) -> list[tuple[int, int]]:
    """Row and column of each enlarged image on the page, among the rows and columns that show images."""
    places = [found(page, enlarged(image, factor)) for image in images]
    tops, lefts = (sorted(set(values)) for values in zip(*places, strict=True))
    return [(tops.index(top), lefts.index(left)) for top, left in places]


def reading_order(count: int, columns: int) -> list[tuple[int, int]]:
    return [divmod(number, columns) for number in range(count)]
