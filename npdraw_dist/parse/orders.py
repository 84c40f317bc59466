"""The order in which the chosen parts are drawn: apart from which are chosen, which is parser.py's.

Shapes: B batch, T steps, L places.
"""

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid

ORDERS = ("aligned", "raster", "ranked", "path")


def arrange(chosen: Tensor, gain: Tensor, grid: Grid, steps: int, order: str) -> tuple[Tensor, Tensor]:
    """The steps that draw the chosen places.

    chosen (B, L) bool with at most T places an image, gain (B, L) -> whether (B, T) bool and
    where (B, T) int64. `aligned`: step t is place t. The other orders draw first and then not:
    `raster` row by row, `ranked` the largest gain first, `path` each place next to the last one.
    """
    if order == "aligned":
        assert steps == grid.places
        return chosen, torch.arange(steps, device=chosen.device).expand(len(chosen), -1)
    count = chosen.sum(1, keepdim=True)
    whether = torch.arange(steps, device=chosen.device) < count
    if order == "raster":
        where = chosen.sort(dim=1, descending=True, stable=True).indices[:, :steps]
    elif order == "ranked":
        where = ranked(chosen, gain)[:, :steps]
    else:
        assert order == "path"
        where = path(chosen, grid, steps)
    return whether, where * whether


def ranked(chosen: Tensor, gain: Tensor) -> Tensor:
    """(B, L), (B, L) -> (B, L) int64: the chosen places by falling gain, ties in raster order."""
    return gain.masked_fill(~chosen, -torch.inf).sort(dim=1, descending=True, stable=True).indices


def path(chosen: Tensor, grid: Grid, steps: int) -> Tensor:
    """(B, L) -> (B, T) int64: from the first chosen place always to the nearest that is left.

    Nearest by the distance of corners, ties in raster order.
    """
    corners = grid.corners.to(chosen.device, torch.int32)
    squared_distance = (corners[:, None] - corners[None]).square().sum(-1)  # (L, L)
    far = int(squared_distance.max()) + 1
    left = chosen.clone()
    where = chosen.new_zeros(len(chosen), steps, dtype=torch.int64)
    place = left.byte().argmax(1)
    for step in range(steps):
        where[:, step] = place
        left.scatter_(1, place[:, None], False)
        place = squared_distance[place].masked_fill_(~left, far).argmin(1)
    return where
