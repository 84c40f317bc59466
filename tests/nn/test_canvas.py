"""The relaxed canvas has the renderer's value, and the gradient of moving a part."""

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import paste, render
from npdraw_dist.nn.canvas import soft_canvas

GRIDS = [Grid(6, 6, 2, 2), Grid(7, 8, 3, 3), Grid(7, 8, 3, 2)]
K = 4


def draw(grid: Grid, steps: int, channels: int = 2) -> tuple[torch.Tensor, PartSequence]:
    g = torch.Generator().manual_seed(0)
    shape = (3, steps)
    z = PartSequence(
        torch.rand(shape, generator=g) < 0.7,
        torch.randint(grid.places, shape, generator=g),
        torch.randint(K, shape, generator=g),
    )
    return torch.rand(K, channels, grid.patch, grid.patch, generator=g), z


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_hot_weights_give_the_rendered_canvas(grid: Grid) -> None:
    bank, z = draw(grid, 5)
    weights = F.one_hot(z.where, grid.places).float()
    what, gate = F.one_hot(z.what, K).float(), z.whether.float()
    canvas = soft_canvas(bank, what, gate, z.where, weights, grid)
    torch.testing.assert_close(canvas, render(bank, z, grid))
    torch.testing.assert_close(soft_canvas(bank, what, gate, z.where, None, grid), canvas)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_hot_weights_in_aligned_order(grid: Grid) -> None:
    bank, z = draw(grid, grid.places)
    z = PartSequence(z.whether, torch.arange(grid.places).expand(3, -1).clone(), z.what)
    canvas = soft_canvas(bank, F.one_hot(z.what, K).float(), z.whether.float(), None, None, grid)
    torch.testing.assert_close(canvas, render(bank, z, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradient_of_where_is_the_gain_of_moving_the_part(grid: Grid) -> None:
    bank, z = draw(grid, 1)
    weights = F.one_hot(z.where, grid.places).float().requires_grad_()
    what = torch.rand(3, 1, K)
    gate = torch.tensor([[1.0], [1.0], [0.0]])
    g = torch.rand(3, 2, grid.height, grid.width)
    (soft_canvas(bank, what, gate, z.where, weights, grid) * g).sum().backward()
    part = torch.einsum("bk,kcij->bcij", what[:, 0], bank)[:, None] * gate[..., None, None, None]
    values = [
        (paste(part, torch.full_like(z.where, place), grid) * g).sum((1, 2, 3))
        for place in range(grid.places)
    ]
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad[:, 0], torch.stack(values, 1), rtol=1e-4, atol=1e-5)


def test_gradients_of_what_and_whether_are_finite_differences() -> None:
    grid = GRIDS[2]
    bank, z = draw(grid, 4)
    bank = bank.double()
    g = torch.Generator().manual_seed(3)
    what = torch.rand(3, 4, K, generator=g, dtype=torch.float64).requires_grad_()
    gate = (torch.rand(3, 4, generator=g, dtype=torch.float64) + 0.2).requires_grad_()

    def canvas(what: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return soft_canvas(bank, what, gate, z.where, None, grid)

    assert torch.autograd.gradcheck(canvas, (what, gate), eps=1e-7)
