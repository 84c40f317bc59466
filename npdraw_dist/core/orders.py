"""The orders in which a drawing's parts are drawn.

To add an order, write its functions and one entry of ORDERS.
Shapes: B batch, T steps, L places, S >= T steps that an edit combines.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid, squared_distances_on
from npdraw_dist.core.parts import PartSequence

LAST = torch.iinfo(torch.int64).max  # a key that is sorted last


class Aligned:
    """The authors' order: T = L, and step t draws at place t or draws nothing, so *where* is known."""

    aligned = True

    def arrange(self, chosen: Tensor, gain: Tensor, grid: Grid, steps: int) -> tuple[Tensor, Tensor]:
        """Orders a parse: chosen (B, L) bool, gain (B, L) -> whether (B, T) bool, where (B, T) int64.

        At most T places of an image are chosen. gain: reduction of the squared error by each place's part.
        """
        assert steps == grid.places
        return chosen, torch.arange(steps, device=chosen.device).expand(len(chosen), -1)

    def collect(self, steps: int, drawn: Tensor, where: Tensor, what: Tensor, step: Tensor) -> PartSequence:
        """Builds the T `steps` of an edited drawing from (B, S) steps, at most T of which are `drawn`.

        step: the index of each step in its own drawing, T for a new step.
        """
        target = torch.where(
            drawn, where, steps
        )  # a step without a part goes to an extra column, which is dropped
        whether = drawn.new_zeros(len(drawn), steps + 1).scatter(1, target, drawn)
        part = what.new_zeros(len(drawn), steps + 1).scatter(1, target, what)
        places = torch.arange(steps, device=where.device).repeat(len(drawn), 1)
        return PartSequence(whether[:, :steps], places, part[:, :steps])


@dataclass(frozen=True)
class Free:
    """An order in which *where* is part of the drawing, and steps that draw come first.

    `Aligned` documents the methods `arrange` and `collect`.
    places: (chosen (B, L), gain (B, L), grid, T) -> (B, T) int64, the chosen places in the order of drawing,
    followed by arbitrary other places.
    edit_key: (where (B, S), step (B, S)) -> (B, S) int64, the sort keys of the steps of an edited drawing.
    Among equal keys, the parts that the edit adds come last.
    next_key: (last (B,), grid) -> (B, L) int64, different for each place. After the place `last` (-1 before
    the first step), the remaining place with the smallest key is drawn. None if the gain decides the order.
    """

    places: Callable[[Tensor, Tensor, Grid, int], Tensor]
    edit_key: Callable[[Tensor, Tensor], Tensor]
    next_key: Callable[[Tensor, Grid], Tensor] | None
    aligned = False

    @property
    def of_places(self) -> bool:
        """Whether the order is a function of the set of chosen places."""
        return self.next_key is not None

    def arrange(self, chosen: Tensor, gain: Tensor, grid: Grid, steps: int) -> tuple[Tensor, Tensor]:
        whether = torch.arange(steps, device=chosen.device) < chosen.sum(1, keepdim=True)
        return whether, self.places(chosen, gain, grid, steps) * whether

    def collect(self, steps: int, drawn: Tensor, where: Tensor, what: Tensor, step: Tensor) -> PartSequence:
        key = self.edit_key(where, step).masked_fill(~drawn, LAST)
        index = key.sort(dim=1, stable=True).indices[:, :steps]
        return PartSequence(*(value.gather(1, index) for value in (drawn, where, what))).canonical()


def by_gain(chosen: Tensor, gain: Tensor) -> Tensor:
    """(B, L) int64, the chosen places by descending gain (ties in raster order), then the other places."""
    return gain.masked_fill(~chosen, -torch.inf).sort(dim=1, descending=True, stable=True).indices


def _row_by_row(chosen: Tensor, gain: Tensor, grid: Grid, steps: int) -> Tensor:
    return chosen.sort(dim=1, descending=True, stable=True).indices[:, :steps]


def _nearest_next(chosen: Tensor, gain: Tensor, grid: Grid, steps: int) -> Tensor:
    """The first chosen place, then each time the nearest remaining one (by corners; ties in raster order)."""
    distances = squared_distances_on(grid, chosen.device)
    far = grid.padded_height**2 + grid.padded_width**2  # more than any distance
    penalty = chosen.logical_not().to(distances.dtype) * far  # drawn and unchosen places count as far away
    place = chosen.byte().argmax(1, keepdim=True)
    where = []
    for _ in range(steps):
        where.append(place)
        penalty.scatter_(1, place, far)
        place = (distances[place[:, 0]] + penalty).argmin(1, keepdim=True)
    return torch.cat(where, 1)


def _raster_key(last: Tensor, grid: Grid) -> Tensor:
    return torch.arange(grid.places, device=last.device).expand(len(last), -1)


def _distance_key(last: Tensor, grid: Grid) -> Tensor:
    near = squared_distances_on(grid, last.device)[last.clamp(min=0)].long() * (last >= 0)[:, None]
    return near * grid.places + _raster_key(last, grid)


ORDERS: dict[str, Aligned | Free] = {
    "aligned": Aligned(),
    "raster": Free(_row_by_row, edit_key=lambda where, step: where, next_key=_raster_key),
    "ranked": Free(
        lambda chosen, gain, grid, steps: by_gain(chosen, gain)[:, :steps],
        edit_key=lambda where, step: step,
        next_key=None,
    ),
    "path": Free(_nearest_next, edit_key=lambda where, step: torch.zeros_like(step), next_key=_distance_key),
}
