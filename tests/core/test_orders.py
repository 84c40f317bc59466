"""Orders against plain loops over one image."""

import math

import pytest
import torch

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS, Free

GRIDS = [Grid(12, 20, 4, 4), Grid(9, 9, 3, 2)]


def plain(chosen: list[int], gain: list[float], grid: Grid, order: str) -> list[int]:
    if order == "ranked":
        return sorted(chosen, key=lambda place: (-gain[place], place))
    if order == "raster":
        return chosen
    corners, left = grid.corners.tolist(), list(chosen)
    steps: list[int] = []
    while left:
        nearest = left[0]
        if steps:
            nearest = min(left, key=lambda place: (math.dist(corners[steps[-1]], corners[place]), place))
        left.remove(nearest)
        steps.append(nearest)
    return steps


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ["raster", "ranked", "path"])
def test_order_is_that_of_a_plain_loop(grid: Grid, order: str) -> None:
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(20, grid.places, generator=generator) < torch.linspace(0, 1, 20)[:, None]
    gain = torch.randint(1, 6, chosen.shape, generator=generator).float()
    steps = int(chosen.sum(1).max())
    whether, where = ORDERS[order].arrange(chosen, gain, grid, steps)
    assert whether.shape == where.shape == (20, steps)
    for row in range(20):
        expected = plain(chosen[row].nonzero()[:, 0].tolist(), gain[row].tolist(), grid, order)
        assert where[row, : len(expected)].tolist() == expected
        assert whether[row].tolist() == [True] * len(expected) + [False] * (steps - len(expected))
        assert not where[row, len(expected) :].any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ["raster", "path"])
def test_the_next_place_has_the_smallest_key(grid: Grid, order: str) -> None:
    chosen = torch.rand(20, grid.places, generator=torch.Generator().manual_seed(3)) < 0.4
    rule = ORDERS[order]
    assert isinstance(rule, Free)
    assert rule.next_key is not None
    whether, where = rule.arrange(chosen, chosen.float(), grid, grid.places)
    left, last = chosen.clone(), torch.full((20,), -1)
    for step in range(grid.places):
        keys = rule.next_key(last, grid)
        assert all(len(row.unique()) == grid.places for row in keys)
        place = keys.masked_fill(~left, torch.iinfo(torch.int64).max).argmin(1)
        on = whether[:, step]
        assert torch.equal(place[on], where[on, step])
        left[torch.arange(20)[on], place[on]] = False
        last = torch.where(on, place, last)
    assert not left.any()


def test_aligned_keeps_every_place() -> None:
    grid = GRIDS[0]
    chosen = torch.rand(5, grid.places, generator=torch.Generator().manual_seed(2)) < 0.5
    whether, where = ORDERS["aligned"].arrange(chosen, chosen.float(), grid, grid.places)
    assert torch.equal(whether, chosen)
    assert torch.equal(where, torch.arange(grid.places).expand(5, -1))
