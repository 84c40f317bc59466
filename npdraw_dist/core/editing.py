"""Editing a drawing z: parts put in, taken out, moved, exchanged, and taken from another drawing.

All functions are pure and take batches. A place holds what all steps at it draw; to put something
there takes away what was there. Two invariants are kept, by the order of the drawings:

`aligned`: step t draws at place t or nothing, T = L.
`raster`, `ranked`, `path`: steps that draw come first. `raster` sorts them by place, `ranked` merges
them by their step (so by gain), `path` draws what came from elsewhere last. The canvas is a maximum
and does not depend on this; the prior does.

Where more than T steps would draw, those that were there before give way, the last drawn first, and
what was put in stays: so a region of B is B's, whatever becomes of A.
Shapes: B batch, T steps, L places, N drawings between two.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from npdraw_dist.core.parts import PartSequence


def compose(z_a: PartSequence, z_b: PartSequence, mask: Tensor, order: str) -> PartSequence:
    """B's parts at the places of `mask`, (L,) or (B, L) bool, on A's canvas; A's parts there are removed.

    The empty mask gives A's canvas, the full one B's. Raises ValueError where the shapes differ.
    """
    if z_a.whether.shape != z_b.whether.shape:
        raise ValueError(
            f"A has {len(z_a)} drawings of {z_a.steps} steps and B has {len(z_b)} of {z_b.steps}"
        )
    a, b = _Entries.of(z_a, order), _Entries.of(z_b, order)
    return _merge(a.only(~a.inside(mask)), b.only(b.inside(mask)), order)


def remove(z: PartSequence, mask: Tensor, order: str) -> PartSequence:
    """Draws nothing at the places of `mask`, (L,) or (B, L) bool."""
    old = _Entries.of(z, order)
    return _merge(old.only(~old.inside(mask)), None, order)


def put(z: PartSequence, place: int, part: int, order: str) -> PartSequence:
    """The place holds this part, and nothing else."""
    old = _Entries.of(z, order)
    new = _Entries(
        torch.ones_like(z.whether[:, :1]),
        torch.full_like(z.where[:, :1], place),
        torch.full_like(z.what[:, :1], part),
        torch.full_like(z.where[:, :1], z.steps),
    )
    return _merge(old.only(old.where != place), new, order)


def move(z: PartSequence, source: int, target: int, order: str) -> PartSequence:
    """What `source` holds is at `target`, which loses what it held; `source` is empty."""
    old = _Entries.of(z, order)
    moving = old.only(old.where == source)
    moved = _Entries(moving.drawn, torch.full_like(old.where, target), old.what, old.step)
    return _merge(old.only((old.where != source) & (old.where != target)), moved, order)


def swap(z: PartSequence, first: int, second: int, order: str) -> PartSequence:
    """The two places exchange what they hold."""
    old = _Entries.of(z, order)
    at_first, at_second = old.where == first, old.where == second
    where = torch.where(at_first, second, torch.where(at_second, first, old.where))
    return _merge(_Entries(old.drawn, where, old.what, old.step), None, order)


def interpolate(z_a: PartSequence, z_b: PartSequence, places: int, order: str) -> PartSequence:
    """From A to B, each (1, T), place by place in raster order -> (N, T).

    The first row is A and the last B; each row changes one place at which the two differ.
    """
    if len(z_a) != 1 or len(z_b) != 1:
        raise ValueError(f"interpolation is between two drawings, not {len(z_a)} and {len(z_b)}")
    differ = differing_places(z_a, z_b, places, order).nonzero()[:, 0]
    masks = torch.zeros(len(differ) + 1, places, dtype=torch.bool, device=z_a.where.device)
    for row, place in enumerate(differ.tolist(), start=1):
        masks[row:, place] = True
    rows = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    return compose(z_a[rows], z_b[rows], masks, order)


def differing_places(z_a: PartSequence, z_b: PartSequence, places: int, order: str) -> Tensor:
    """(L,) bool: the places that do not hold the same parts as often in two drawings, each (1, T)."""
    held: list[list[Counter[int]]] = []
    for z in (z_a, z_b):
        entries = _Entries.of(z, order)
        at: list[Counter[int]] = [Counter() for _ in range(places)]
        for where, what in zip(
            entries.where[entries.drawn].tolist(), entries.what[entries.drawn].tolist(), strict=True
        ):
            at[where][what] += 1
        held.append(at)
    return torch.tensor([a != b for a, b in zip(*held, strict=True)], device=z_a.where.device)


def count_drawn(z: PartSequence, mask: Tensor) -> Tensor:
    """(B,) int64: the steps that draw at the places of `mask`, (L,) or (B, L) bool."""
    inside = mask.expand(len(z), -1).gather(1, z.where)
    return (z.whether & inside).sum(1)


def check_ranges(z: PartSequence, steps: int, places: int, parts: int, order: str) -> None:
    """Raises ValueError where z is no drawing of T `steps`, L `places` and K `parts` in this order."""
    if z.steps != steps:
        raise ValueError(f"a drawing has {steps} steps, not {z.steps}")
    for name, values, size in (("where", z.where, places), ("what", z.what, parts)):
        wrong = z.whether & ((values < 0) | (values >= size))
        if wrong.any():
            raise ValueError(f"{name} is {int(values[wrong][0])}; 0 to {size - 1} are there")
    if order == "aligned" and (z.whether & (z.where != torch.arange(steps, device=z.where.device))).any():
        raise ValueError("in aligned order step t draws at place t")


@dataclass(frozen=True)
class _Entries:
    """Steps on their way into another drawing, each (B, S); `step`: where in time they were drawn."""

    drawn: Tensor
    where: Tensor
    what: Tensor
    step: Tensor

    @classmethod
    def of(cls, z: PartSequence, order: str) -> "_Entries":
        step = torch.arange(z.steps, device=z.where.device).expand(len(z), -1)
        # A stored aligned drawing may hold 0 in where at steps that draw nothing.
        return cls(z.whether, step if order == "aligned" else z.where, z.what, step)

    def only(self, kept: Tensor) -> "_Entries":
        return _Entries(self.drawn & kept, self.where, self.what, self.step)

    def inside(self, mask: Tensor) -> Tensor:
        """(B, S) bool: the place is one of `mask`."""
        return mask.expand(len(self.where), -1).gather(1, self.where)


def _merge(old: _Entries, new: _Entries | None, order: str) -> PartSequence:
    """One drawing of as many steps as `old` has; of `old` the last drawn give way where it is full."""
    batch, steps = old.drawn.shape
    empty = _Entries(*(value[:, :0] for value in (old.drawn, old.where, old.what, old.step)))
    new = new or empty
    room = steps - new.drawn.sum(1, keepdim=True)
    old = old.only(old.drawn.cumsum(1) <= room)
    drawn, where, what, step = (
        torch.cat([getattr(old, name), getattr(new, name)], 1) for name in ("drawn", "where", "what", "step")
    )
    if order == "aligned":
        target = torch.where(drawn, where, steps)  # what draws nothing goes to a column that is cut off
        whether = drawn.new_zeros(batch, steps + 1).scatter(1, target, drawn)
        filled = what.new_zeros(batch, steps + 1).scatter(1, target, what)
        places = torch.arange(steps, device=where.device).expand(batch, -1)
        return PartSequence(whether[:, :steps], places.clone(), filled[:, :steps])
    key = {"raster": where, "ranked": step, "path": torch.zeros_like(step)}[order]
    last = torch.iinfo(torch.int64).max
    index = key.masked_fill(~drawn, last).sort(dim=1, stable=True).indices[:, :steps]
    return PartSequence(drawn.gather(1, index), where.gather(1, index), what.gather(1, index)).canonical()
