"""Edits given as text: opens the drawings, parses places, applies the edit and writes pictures of it.

A drawing is a `PartSequence` of one image. Shapes: L places, T steps, C channels, H x W image.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from npdraw_dist.core import editing
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.data.uploads import NotAPicture, read_picture
from npdraw_dist.measure.pictures import png, save_edit, save_interpolation
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline.held_out import HeldOutImages
from npdraw_dist.pipeline.models import model_input


@dataclass(frozen=True)
class Edit:
    """What is done to A, in this order: it takes B's parts in `region`, loses `remove`, then moves parts."""

    region: Tensor  # (L,) bool
    remove: Tensor  # (L,) bool
    move: tuple[int, int] | None  # places: from, to

    def __call__(self, z_a: PartSequence, z_b: PartSequence, order: str) -> PartSequence:
        z = editing.compose(z_a, z_b, self.region, order)
        z = editing.remove(z, self.remove, order)
        return z if self.move is None else editing.move(z, *self.move, order)


def open_drawing(text: str, model: NPDraw, model_folder: str, invert: bool = False) -> PartSequence:
    """(1, T) from `sample:SEED`, `test:INDEX`, a saved .safetensors file or an image file.

    Raises UserError if `text` is none of these.
    """
    kind, _, number = text.partition(":")
    if kind in ("sample", "test") and not number.isdecimal():
        raise UserError(f"{text}: write {kind}: and a whole number, such as {kind}:0")
    if kind == "sample":
        return model.sample_prior(1, torch.Generator(model.device).manual_seed(int(number) % 2**63))
    if text.endswith(".safetensors"):
        return _open_saved(text, model)
    try:
        if kind == "test":
            images = HeldOutImages(model_folder, model.spec, "edit")[int(number)]
        else:
            content, shape = read_bytes(*open_filesystem(text)), model.spec.image_shape
            images = read_picture(content, shape, invert, model.grid.background)
    except IndexError as error:
        raise UserError(f"{text}: {error} in the data of --model {model_folder}") from None
    except (OSError, NotAPicture) as error:
        raise UserError(f"{text} is no image ({error}); or give sample:SEED or test:INDEX") from None
    return model.encode(model_input(model, images))


def _open_saved(text: str, model: NPDraw) -> PartSequence:
    z, spec = PartSequence.load(Path(text)).to(model.device), model.spec
    try:
        editing.check_ranges(z, spec.steps, spec.grid.places, spec.parts, spec.where_given)
    except ValueError as error:
        raise UserError(f"{text} is a drawing of another model: {error}") from None
    if len(z) != 1:
        raise UserError(f"{text} holds {len(z)} drawings; one is needed")
    return z


def parse_region(text: str, grid: Grid) -> Tensor:
    """`R0:R1,C0:C1` -> (L,) bool: rows R0 to R1 - 1 and columns C0 to C1 - 1 of places.

    A missing end is the grid's. Raises UserError on anything else.
    """
    found = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*)", text.replace(" ", ""))
    size = f"the grid has {grid.rows} rows and {grid.columns} columns of places"
    if found is None:
        raise UserError(f"region {text!r} is not R0:R1,C0:C1, such as 0:3,2:5; {size}")
    default = ("0", str(grid.rows), "0", str(grid.columns))
    top, bottom, left, right = (int(a or b) for a, b in zip(found.groups(), default, strict=True))
    if not (top <= bottom <= grid.rows and left <= right <= grid.columns):
        raise UserError(f"region {text!r}: {size}, and no end may be before its start")
    mask = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask.view(-1)


def parse_move(text: str, grid: Grid) -> tuple[int, int]:
    """`R,C:R,C` -> two places, from and to. Raises UserError on anything else."""
    found = re.fullmatch(r"(\d+),(\d+):(\d+),(\d+)", text.replace(" ", ""))
    if found is None:
        raise UserError(f"move {text!r} is not R,C:R,C, such as 2,3:0,1")
    row, column, to_row, to_column = map(int, found.groups())
    if max(row, to_row) >= grid.rows or max(column, to_column) >= grid.columns:
        raise UserError(f"move {text!r}: the grid has {grid.rows} rows and {grid.columns} columns of places")
    return row * grid.columns + column, to_row * grid.columns + to_column


def write_edit(
    model: NPDraw, z_a: PartSequence, z_b: PartSequence, edit: Edit, folder: Path, interpolate: bool
) -> int:
    """Writes edit.png (A, B and the result), edited.png, z.safetensors and, if asked, interpolation.gif.

    Returns how many of A's parts outside the region were dropped because all T steps were taken.
    """
    order = model.spec.order
    dropped = editing.count_drawn(z_a, ~edit.region) + editing.count_drawn(z_b, edit.region)
    dropped -= editing.compose(z_a, z_b, edit.region, order).whether.sum()
    z = edit(z_a, z_b, order)
    canvases = model.render(PartSequence.cat([z_a, z_b, z]))
    images = model.decode(canvases)
    save_edit(folder / "edit.png", canvases, images, ["A", "B", "edited"], edit.region, model.grid)
    (folder / "edited.png").write_bytes(png(images[2]))
    z.save(folder / "z.safetensors", {"order": order})
    if interpolate:
        between = model.render(editing.interpolate(z_a, z, model.grid.places, order))
        save_interpolation(folder / "interpolation.gif", between, model.decode(between))
    return int(dropped)
