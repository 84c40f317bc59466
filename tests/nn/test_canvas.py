"""The relaxed canvas has the renderer's value, and the gradients of finite differences."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.nn.relaxations import soft_canvas

GRIDS = [Grid(6, 6, 2, 2), Grid(7, 8, 3, 3), Grid(7, 8, 3, 2)]
GRIDS += [replace(grid, background=1.0) for grid in GRIDS]
K = 4


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_hot_weights_give_the_rendered_canvas(grid: Grid) -> None:
    g = torch.Generator().manual_seed(0)
    bank, shape = torch.rand(K, 2, grid.patch, grid.patch, generator=g), (3, grid.places)
    z = PartSequence(
        torch.rand(shape, generator=g) < 0.7,
        torch.arange(grid.places).expand(3, -1).clone(),
        torch.randint(K, shape, generator=g),
    )
    canvas = soft_canvas(bank, F.one_hot(z.what, K).float(), z.whether.float(), grid)
    torch.testing.assert_close(canvas, render(bank, z, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_are_finite_differences(grid: Grid) -> None:
    g = torch.Generator().manual_seed(3)
    bank = torch.rand(K, 2, grid.patch, grid.patch, generator=g).double()
    what = torch.rand(2, grid.places, K, generator=g, dtype=torch.float64).requires_grad_()
    gate = (torch.rand(2, grid.places, generator=g, dtype=torch.float64) + 0.2).requires_grad_()

    def canvas(what: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return soft_canvas(bank, what, gate, grid)

    assert torch.autograd.gradcheck(canvas, (what, gate), eps=1e-7)


@pytest.mark.parametrize("stride", [3, 2])
def test_a_part_half_drawn_is_half_way_to_the_background(stride: int) -> None:
    grid = Grid(3, 3, 3, stride, background=1.0)
    bank, what = torch.rand(2, 1, 3, 3), torch.tensor([[[0.25, 0.75]]])
    mixed = (0.25 * bank[0] + 0.75 * bank[1])[None]
    for gate in (0.0, 0.5, 1.0):
        canvas = soft_canvas(bank, what, torch.tensor([[gate]]), grid)
        torch.testing.assert_close(canvas, gate * mixed + (1 - gate))
