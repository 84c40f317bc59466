"""Posters of edits and completions, with a row for each drawing.

Shapes: n completions, N parts, P patch side, L places, C channels, h x w canvas, H x W image. Images are
floats in [0, 1]; each of their pixels becomes a square of file pixels ("px").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.pages import LINE, OUTLINE, PAPER, arrange, enlarge, tile_side, write

FRAME = 2  # width of a frame, px
PART_GAP = 2  # gap between parts that are shown separately, px
EDIT_COLUMNS = ["A: parts", "A: canvas", "A: image", "B: canvas", "B: image", "edit: canvas", "edit: image"]
HATCH, HATCH_LINE, HATCH_STEP = (204, 204, 204), (150, 150, 150), 8


@dataclass(frozen=True)
class EditRow:
    """An edit with A, B and the result, in this order. canvases: (3, C, h, w). images: (3, C, H, W).

    region: (L,) bool, the edited places, which get a frame on the canvases of B and of the result.
    parts: (N, C, P, P), the parts of A. where: (N,), their places.
    """

    canvases: Tensor
    images: Tensor
    region: Tensor
    parts: Tensor
    where: Tensor


@dataclass(frozen=True)
class CompletionRow:
    """n completions of a drawing. original: (C, H, W). images: (n, C, H, W).

    canvas: (C, h, w), with the kept parts alone. keep: (L,) bool, the kept places; all others are hatched.
    """

    original: Tensor
    canvas: Tensor
    keep: Tensor
    images: Tensor


def save_edits(path: Path, rows: Sequence[EditRow], grid: Grid) -> None:
    """Saves a row for each edit: A's parts shown separately, then canvas and image of A, B and the result."""
    tile = max(tile_side(rows[0].images), (grid.patch + PART_GAP) * max(grid.rows, grid.columns))
    tiles = []
    for row in rows:
        shown = []
        for index, (canvas, image) in enumerate(zip(row.canvases, row.images, strict=True)):
            left = enlarge(canvas, tile)
            shown += [framed(left, row.region, grid) if index > 0 else left, enlarge(image, tile)]
        tiles += [_apart(row, grid, shown[0].size), *shown]
    _save(path, tiles, EDIT_COLUMNS)


def framed(canvas: Image.Image, region: Tensor, grid: Grid) -> Image.Image:
    """The enlarged canvas with a frame along the edge of the places `region`, (L,) bool."""
    from scipy.ndimage import binary_erosion  # slow to import

    pixels = _enlarged(covered(region, grid), canvas.width // grid.width)
    inside = binary_erosion(pixels, np.ones((2 * FRAME + 1, 2 * FRAME + 1)))
    return _painted(canvas, pixels & ~inside, OUTLINE)


def _apart(row: EditRow, grid: Grid, size: tuple[int, int]) -> Image.Image:
    """Draws the parts of A, each in the row and column of its place, as large as `size` allows."""
    sides = [(size[0] + PART_GAP) // grid.columns, (size[1] + PART_GAP) // grid.rows]
    factor = max((min(sides) - PART_GAP) // grid.patch, 1)
    step = factor * grid.patch + PART_GAP
    picture = Image.new("RGB", size, PAPER)
    margin = [(size[0] + PART_GAP - grid.columns * step) // 2, (size[1] + PART_GAP - grid.rows * step) // 2]
    for part, place in zip(row.parts, row.where.tolist(), strict=True):
        y, x = divmod(place, grid.columns)
        picture.paste(enlarge(part, factor * grid.patch), (margin[0] + x * step, margin[1] + y * step))
    return picture


def save_completions(path: Path, rows: Sequence[CompletionRow], grid: Grid) -> None:
    """Saves a row for each drawing: the original, its kept parts, and the images of its n completions."""
    tile = tile_side(rows[0].original)
    tiles = []
    for row in rows:
        kept = enlarge(row.canvas, tile)
        hidden = ~_enlarged(covered(row.keep, grid), kept.width // grid.width)
        lines = np.indices(hidden.shape).sum(0) % HATCH_STEP == 0
        kept = _painted(_painted(kept, hidden, HATCH), hidden & lines, HATCH_LINE)
        tiles += [enlarge(row.original, tile), kept, *(enlarge(image, tile) for image in row.images)]
    count = len(rows[0].images)
    _save(
        path, tiles, ["original", "kept", *(["completed"] if count == 1 else map(str, range(1, count + 1)))]
    )


def covered(places: Tensor, grid: Grid) -> NDArray[np.bool_]:
    """Places (L,) bool -> their pixels (h, w) bool."""
    cells = torch.ones(1, grid.places, 1, grid.patch, grid.patch) * places.cpu()[None, :, None, None, None]
    return (grid.fold_sum(cells)[0, 0] > 0).numpy()


def _enlarged(pixels: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _painted(picture: Image.Image, pixels: NDArray[np.bool_], colour: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.where(pixels[..., None], np.array(colour, np.uint8), np.asarray(picture)))


def _save(path: Path, tiles: Sequence[Image.Image], names: Sequence[str]) -> None:
    """Saves a page of tiles with a name above each column."""
    page = ImageOps.expand(arrange(tiles, len(names)), (0, LINE, 0, 0), PAPER)
    for column, name in enumerate(names):
        write(page, name, (column + 0.5) * page.width / len(names), LINE / 2 + 2, "mm")
    page.save(path, optimize=True)
