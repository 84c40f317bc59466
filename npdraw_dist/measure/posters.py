"""Posters: edits and completions of several drawings on one sheet, a row for each.

Shapes: n completions, N parts, P patch side, L places, C channels, h x w canvas, H x W image. Images are
floats in [0, 1]; each of their pixels becomes a square of file pixels ("px").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.measure.pages import FONT, INK, LINE, OUTLINE, PAPER, arrange, enlarge, tile_side

FRAME = 2  # width of a frame, px
PART_GAP = 2  # between parts that are shown apart, px
EDIT_COLUMNS = ["A: parts", "A: canvas", "A: image", "B: canvas", "B: image", "edit: canvas", "edit: image"]
HATCH, HATCH_LINE, HATCH_STEP = (204, 204, 204), (150, 150, 150), 8


@dataclass(frozen=True)
class EditRow:
    """An edit: A, B and the result. canvases: (3, C, h, w); images: (3, C, H, W).

    region: (L,) bool, the places that were edited. They are framed on the canvases of B and of the result.
    parts: (N, C, P, P), those of A. where: (N,), their places.
    """

    canvases: Tensor
    images: Tensor
    region: Tensor
    parts: Tensor
    where: Tensor


@dataclass(frozen=True)
class CompletionRow:
    """n completions of a drawing. original: (C, H, W). images: (n, C, H, W).

    canvas: (C, h, w), of the kept parts alone. keep: (L,) bool, the kept places; what is outside is hatched.
    """

    original: Tensor
    canvas: Tensor
    keep: Tensor
    images: Tensor


def save_edits(path: Path, rows: Sequence[EditRow], grid: Grid) -> None:
    """A row for each edit: the parts of A with gaps between, then canvas and image of A, B and the result."""
    tile = max(tile_side(rows[0].images), (grid.patch + PART_GAP) * max(grid.rows, grid.columns))
    tiles = []
    for row in rows:
        shown = []
        for index, (canvas, image) in enumerate(zip(row.canvases, row.images, strict=True)):
            left = enlarge(canvas, tile)
            if index > 0:
                _paint(left, _edge(covered(row.region, grid), left.width // grid.width), OUTLINE)
            shown += [left, enlarge(image, tile)]
        tiles += [_apart(row, grid, shown[0].size), *shown]
    page = arrange(tiles, len(EDIT_COLUMNS))
    _headed(page, EDIT_COLUMNS).save(path, optimize=True)


def _apart(row: EditRow, grid: Grid, size: tuple[int, int]) -> Image.Image:
    """The parts of A, each in the row and column of its place, as large as `size` allows."""
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
    """A row for each drawing: the original, what was kept of it, and the images of its n completions.

    Raises ValueError unless all rows have the same n.
    """
    counts = {len(row.images) for row in rows}
    if len(counts) != 1:
        raise ValueError(f"rows of one number of completions are needed, not of {sorted(counts)}")
    tile = tile_side(rows[0].original)
    tiles = []
    for row in rows:
        kept = enlarge(row.canvas, tile)
        factor = kept.width // grid.width
        _hatch(kept, ~_enlarged(covered(row.keep, grid), factor))
        tiles += [enlarge(row.original, tile), kept, *(enlarge(image, tile) for image in row.images)]
    (count,) = counts
    names = ["original", "kept", *(["completed"] if count == 1 else map(str, range(1, count + 1)))]
    _headed(arrange(tiles, len(names)), names).save(path, optimize=True)


def covered(places: Tensor, grid: Grid) -> NDArray[np.bool_]:
    """(h, w) bool: the pixels of the places (L,) bool."""
    cells = torch.ones(1, grid.places, 1, grid.patch, grid.patch) * places.cpu()[None, :, None, None, None]
    return (grid.fold_sum(cells)[0, 0] > 0).numpy()


def _enlarged(pixels: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _edge(pixels: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """The inner edge, FRAME px wide, of pixels (h, w) that are enlarged by `factor`."""
    large = torch.from_numpy(_enlarged(pixels, factor)).float()[None]
    near_outside = F.max_pool2d(1 - F.pad(large, (FRAME,) * 4), 2 * FRAME + 1, 1)
    edge: NDArray[np.bool_] = (large * near_outside)[0].bool().numpy()
    return edge


def _paint(picture: Image.Image, pixels: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    picture.paste(colour, mask=Image.fromarray(pixels.astype(np.uint8) * 255))


def _hatch(picture: Image.Image, pixels: NDArray[np.bool_]) -> None:
    """Covers `pixels` with grey and diagonal lines: nothing is known of them."""
    rows, columns = np.indices(pixels.shape)
    _paint(picture, pixels, HATCH)
    _paint(picture, pixels & ((rows + columns) % HATCH_STEP == 0), HATCH_LINE)


def _headed(page: Image.Image, names: Sequence[str]) -> Image.Image:
    """`page` with a name above each of its equal columns."""
    tall = Image.new("RGB", (page.width, page.height + LINE), PAPER)
    tall.paste(page, (0, LINE))
    pen = ImageDraw.Draw(tall)
    for column, name in enumerate(names):
        middle = (column + 0.5) * page.width / len(names)
        pen.text((middle, LINE / 2 + 2), name, INK, FONT, "mm")
    return tall
