"""Places of a grid as people name them: rectangles as text, numbers, rows and columns, masks.

Shapes: B drawings, L places.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.grid import Grid


def parse_region(text: str | None, grid: Grid) -> Tensor:
    """`R0:R1,C0:C1` -> (L,) bool: rows R0 to R1 - 1 and columns C0 to C1 - 1 of places.

    Several are joined by `;`. A missing end is the grid's. None: no place. Raises UserError on anything else.
    """
    mask = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    for part in [] if text is None else text.split(";"):
        found = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*)", part.replace(" ", ""))
        size = f"the grid has {grid.rows} rows and {grid.columns} columns of places"
        if found is None:
            raise UserError(f"region {part!r} is not R0:R1,C0:C1, such as 0:3,2:5; {size}")
        default = ("0", str(grid.rows), "0", str(grid.columns))
        top, bottom, left, right = (int(a or b) for a, b in zip(found.groups(), default, strict=True))
        if not (top <= bottom <= grid.rows and left <= right <= grid.columns):
            raise UserError(f"region {part!r}: {size}, and no end may be before its start")
        mask[top:bottom, left:right] = True
    return mask.view(-1)


def parse_move(text: str, grid: Grid) -> tuple[int, int]:
    """`R,C:R,C` -> two places, from and to. Raises UserError on anything else."""
    found = re.fullmatch(r"(\d+),(\d+):(\d+),(\d+)", text.replace(" ", ""))
    if found is None:
        raise UserError(f"move {text!r} is not R,C:R,C, such as 2,3:0,1")
    row, column, to_row, to_column = map(int, found.groups())
    return place_of((row, column), grid), place_of((to_row, to_column), grid)


def place_of(place: Any, grid: Grid) -> int:
    """A place as its number or its (row, column) -> its number. Raises UserError if there is none."""
    numbers = tuple(place) if isinstance(place, Sequence) and not isinstance(place, str) else (place,)
    limits = (grid.rows, grid.columns) if len(numbers) == 2 else (grid.places,)
    whole = all(isinstance(number, int | np.integer) for number in numbers)
    if len(numbers) != len(limits) or not whole:
        raise UserError(f"place {place!r} is neither a number nor (row, column)")
    if not all(0 <= number < limit for number, limit in zip(numbers, limits, strict=True)):
        raise UserError(
            f"place {place!r}: the grid has {grid.rows} rows and {grid.columns} columns, {grid.places} places"
        )
    return int(numbers[0]) if len(numbers) == 1 else int(numbers[0] * grid.columns + numbers[1])


def mask_of(places: Any, grid: Grid, batch: int, name: str = "places") -> Tensor:
    """Places of one or of `batch` drawings -> bool (L,) or (B, L), B = batch.

    places: text as `parse_region` takes it; a list of places as `place_of` takes them; or a bool tensor or
    array (L,), (rows, columns), (B, L) or (B, rows, columns). Raises UserError on anything else; `name` is
    its name there.
    """
    if isinstance(places, str):
        return parse_region(places, grid)
    named = isinstance(places, list | tuple | set) and not (
        places and all(isinstance(place, bool) for place in places)
    )
    if named:
        mask = torch.zeros(grid.places, dtype=torch.bool)
        mask[[place_of(place, grid) for place in places]] = True
        return mask
    if not isinstance(places, Tensor | np.ndarray | list | tuple):
        raise UserError(f"{name}: a mask, a list of places or text such as 0:3,:, not {places!r}")
    mask = places if isinstance(places, Tensor) else torch.as_tensor(np.asarray(places))
    if tuple(mask.shape[-2:]) == (grid.rows, grid.columns):
        mask = mask.flatten(-2)
    count, shape = grid.places, tuple(mask.shape)
    if mask.dtype != torch.bool or shape not in ((count,), (batch, count)):
        raise UserError(f"{name} is bool ({count},) or ({batch}, {count}), not {mask.dtype} {shape}")
    return mask
