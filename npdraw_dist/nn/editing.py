"""Edits drawings z: puts, removes, moves and swaps parts, and takes a region from another drawing.

It also parses places, which users give as rectangles in text, numbers, (row, column) pairs or masks.

All functions are pure. `order`, a name in `core.orders.ORDERS`, selects the order of the result's
steps. In a free order several steps can draw at one place; `put` and `move` replace all parts of a place. If
more than T steps would draw, the last steps of the old drawing are dropped, and all added parts stay.
Shapes: B batch, T steps, L places, S steps of all drawings that an edit combines, N drawings of an
interpolation.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.system.errors import UserError


def compose(z_a: PartSequence, z_b: PartSequence, mask: Tensor, order: str) -> PartSequence:
    """Replaces the parts of z_a by those of z_b at the places of `mask`, (L,) or (B, L) bool.

    Raises ValueError if z_a and z_b have different shapes.
    """
    if z_a.whether.shape != z_b.whether.shape:
        raise ValueError(
            f"A has {len(z_a)} drawings of {z_a.steps} steps, but B has {len(z_b)} of {z_b.steps}"
        )
    a, b = _steps(z_a, order), _steps(z_b, order)
    return _merge(a.only(~a.inside(mask)), b.only(b.inside(mask)), order)


def remove(z: PartSequence, mask: Tensor, order: str) -> PartSequence:
    """Removes all parts at the places of `mask`, (L,) or (B, L) bool."""
    old = _steps(z, order)
    return _merge(old.only(~old.inside(mask)), None, order)


def put(z: PartSequence, place: int, part: int, order: str) -> PartSequence:
    """Replaces all parts at `place` by `part`."""
    old = _steps(z, order)
    one = z.where[:, :1]
    new = _Steps(
        torch.ones_like(z.whether[:, :1]),
        where=torch.full_like(one, place),
        what=torch.full_like(one, part),
        step=torch.full_like(one, z.steps),
    )
    return _merge(old.only(old.where != place), new, order)


def move(z: PartSequence, source: int, target: int, order: str) -> PartSequence:
    """Moves all parts from the place `source` to the place `target`, and removes the parts at `target`."""
    old = _steps(z, order)
    moved = old.only(old.where == source)._replace(where=torch.full_like(old.where, target))
    return _merge(old.only((old.where != source) & (old.where != target)), moved, order)


def swap(z: PartSequence, first: int, second: int, order: str) -> PartSequence:
    """Exchanges the parts of the places `first` and `second`."""
    old = _steps(z, order)
    at_first, at_second = old.where == first, old.where == second
    where = torch.where(at_first, second, torch.where(at_second, first, old.where))
    return _merge(old._replace(where=where), None, order)


def interpolate(z_a: PartSequence, z_b: PartSequence, places: int, order: str) -> PartSequence:
    """Returns N drawings from z_a (1, T) to z_b (1, T); each takes one more place from z_b, in raster order.

    Only places where z_a and z_b differ count. The last drawing has the order of steps of z_b. Raises
    ValueError unless z_a and z_b are one drawing each.
    """
    if len(z_a) != 1 or len(z_b) != 1:
        raise ValueError(f"interpolation needs one drawing at each end, not {len(z_a)} and {len(z_b)}")
    parts = []
    for drawn, where, what, _ in (_steps(z_a, order), _steps(z_b, order)):
        parts.append(Counter(zip(where[drawn].tolist(), what[drawn].tolist(), strict=True)))
    differ = sorted({place for place, _ in (parts[0] - parts[1]) | (parts[1] - parts[0])})
    masks = torch.zeros(len(differ) + 1, places, dtype=torch.bool, device=z_a.where.device)
    for row, place in enumerate(differ, start=1):
        masks[row:, place] = True
    rows = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    way = compose(z_a[rows], z_b[rows], masks, order)
    return PartSequence.cat([way[:-1], _merge(_steps(z_b, order), None, order)])


def dropped(made: PartSequence, *sources: tuple[PartSequence, Tensor]) -> int:
    """The number of parts that an edit dropped because only T steps can draw.

    made: the edited drawing (1, T). sources: the drawings (1, T) from which it was made, each with the places
    (L,) bool whose parts the edit takes.
    """
    wanted = sum(int((z.whether & _at(mask.to(z.where.device), z.where)).sum()) for z, mask in sources)
    return wanted - int(made.whether.sum())


def checked(z: PartSequence, steps: int, places: int, parts: int, where_given: bool) -> PartSequence:
    """Checks z, and sets where and what to 0 at steps that draw nothing.

    where_given: whether step t can only draw at place t; the result then has where = t at all steps. Raises
    ValueError unless z has `steps` steps, *where* and *what* are within range, and `where_given` holds.
    """
    if z.steps != steps:
        raise ValueError(f"a drawing must have {steps} steps, not {z.steps}")
    for name, values, size in (("where", z.where, places), ("what", z.what, parts)):
        wrong = z.whether & ((values < 0) | (values >= size))
        if wrong.any():
            raise ValueError(f"{name} is {int(values[wrong][0])}, outside 0 to {size - 1}")
    step = torch.arange(steps, device=z.where.device)
    if where_given and (z.whether & (z.where != step)).any():
        raise ValueError("in order aligned, step t must draw at place t")
    z = z.canonical()
    return PartSequence(z.whether, step.repeat(len(z), 1), z.what) if where_given else z


class _Steps(NamedTuple):
    """Steps of one or two drawings, each field (B, S). `step` is the index of a step in its own drawing."""

    drawn: Tensor
    where: Tensor
    what: Tensor
    step: Tensor

    def only(self, kept: Tensor) -> "_Steps":
        return self._replace(drawn=self.drawn & kept)

    def inside(self, mask: Tensor) -> Tensor:
        return _at(mask, self.where)


def _steps(z: PartSequence, order: str) -> _Steps:
    step = torch.arange(z.steps, device=z.where.device).expand(len(z), -1)
    # In order aligned, z may have where = 0 at steps that draw nothing. Such a step t gets place t.
    where = torch.where(z.whether, z.where, step) if ORDERS[order].aligned else z.where
    return _Steps(z.whether, where, z.what, step)


def _at(mask: Tensor, where: Tensor) -> Tensor:
    return mask.expand(len(where), -1).gather(1, where)


def _merge(old: _Steps, new: _Steps | None, order: str) -> PartSequence:
    """Merges steps into drawings of T steps. If more than T draw, the last steps of `old` are dropped."""
    steps = old.drawn.shape[1]
    if new is not None:
        old = old.only(old.drawn.cumsum(1) <= steps - new.drawn.sum(1, keepdim=True))
        old = _Steps(*(torch.cat(pair, 1) for pair in zip(old, new, strict=True)))
    return ORDERS[order].collect(steps, *old)


def parse_region(text: str | None, grid: Grid) -> Tensor:
    """`R0:R1,C0:C1` -> mask (L,) bool of the places in rows R0 to R1 - 1 and columns C0 to C1 - 1.

    `;` separates several rectangles. A missing number means the grid's edge. If `text` is None, the mask is
    all False. Raises UserError on any other text.
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
            raise UserError(f"region {part!r} is outside the grid or ends before its start; {size}")
        mask[top:bottom, left:right] = True
    return mask.view(-1)


def parse_move(text: str, grid: Grid) -> tuple[int, int]:
    """`R,C:R,C` -> the source and the target place of a move. Raises UserError on any other text."""
    found = re.fullmatch(r"(\d+),(\d+):(\d+),(\d+)", text.replace(" ", ""))
    if found is None:
        raise UserError(f"move {text!r} is not R,C:R,C, such as 2,3:0,1")
    row, column, to_row, to_column = map(int, found.groups())
    return place_of((row, column), grid), place_of((to_row, to_column), grid)


def place_of(place: Any, grid: Grid) -> int:
    """A number or (row, column) -> the place's number. Raises UserError if the grid has no such place."""
    numbers = tuple(place) if isinstance(place, Sequence) and not isinstance(place, str) else (place,)
    limits = (grid.rows, grid.columns) if len(numbers) == 2 else (grid.places,)
    whole = all(isinstance(number, int | np.integer) for number in numbers)
    if len(numbers) != len(limits) or not whole:
        raise UserError(f"place {place!r} is neither a number nor (row, column)")
    if not all(0 <= number < limit for number, limit in zip(numbers, limits, strict=True)):
        raise UserError(
            f"place {place!r} is outside the grid of {grid.rows} rows and {grid.columns} columns, which has "
            f"{grid.places} places"
        )
    return int(numbers[0]) if len(numbers) == 1 else int(numbers[0] * grid.columns + numbers[1])


def mask_of(places: Any, grid: Grid, batch: int, name: str = "places") -> Tensor:
    """Converts places to a bool mask, (L,) for all drawings, or (B, L) with B = `batch`.

    places: text as `parse_region` takes it; a list of places as `place_of` takes them; or a bool tensor or
    array (L,), (rows, columns), (B, L) or (B, rows, columns). Raises UserError on any other value; the
    message refers to the value as `name`.
    """
    if isinstance(places, str):
        return parse_region(places, grid)
    if isinstance(places, tuple) and len(places) == 2 and all(type(number) is int for number in places):
        raise UserError(
            f"{name} {places} is ambiguous; write [{places}] for one place or {list(places)} for two"
        )
    named = isinstance(places, list | tuple | set) and not (
        places and all(isinstance(place, bool) for place in places)
    )
    if named:
        mask = torch.zeros(grid.places, dtype=torch.bool)
        mask[[place_of(place, grid) for place in places]] = True
        return mask
    if not isinstance(places, Tensor | np.ndarray | list | tuple):
        raise UserError(f"{name} must be a mask, a list of places or text such as 0:3,:, not {places!r}")
    mask = places if isinstance(places, Tensor) else torch.as_tensor(np.asarray(places))
    if tuple(mask.shape[-2:]) == (grid.rows, grid.columns):
        mask = mask.flatten(-2)
    count, shape = grid.places, tuple(mask.shape)
    if mask.dtype != torch.bool or shape not in ((count,), (batch, count)):
        raise UserError(f"{name} must be bool ({count},) or ({batch}, {count}), not {mask.dtype} {shape}")
    return mask
