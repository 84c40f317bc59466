"""Pasting against a renderer of plain NumPy loops."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import (
    gather_parts,
    paste,
    paste_aligned,
    paste_steps,
    paste_steps_at_once,
    render,
)

GRIDS = [Grid(6, 6, 2, 2), Grid(7, 8, 3, 3), Grid(7, 8, 3, 2), Grid(6, 5, 4, 1)]
GRIDS += [Grid(7, 8, 3, 3, True), Grid(9, 10, 4, 4, True), Grid(8, 8, 5, 4, True)]
GRIDS += [replace(grid, background=1.0) for grid in GRIDS]
K, STEPS, BATCH = 5, 7, 3


def draw(grid: Grid, channels: int, steps: int = STEPS) -> tuple[torch.Tensor, PartSequence]:
    g = torch.Generator().manual_seed(0)
    bank = torch.rand(K, channels, grid.patch, grid.patch, generator=g)
    shape = (BATCH, steps)
    where, what = torch.randint(grid.places, shape, generator=g), torch.randint(K, shape, generator=g)
    return bank, PartSequence(torch.rand(shape, generator=g) < 0.7, where, what)


def loop_render(bank: torch.Tensor, z: PartSequence, grid: Grid) -> NDArray[np.float32]:
    """(B, T, C, H, W): the canvas after each step. The brightest pixel shows, on white the darkest."""
    parts, channels, shown = bank.numpy(), bank.shape[1], min if grid.background else max
    out = np.zeros((len(z), z.steps, channels, grid.height, grid.width), np.float32)
    for b in range(len(z)):
        canvas = np.full((channels, grid.height, grid.width), grid.background, np.float32)
        for t in range(z.steps):
            if z.whether[b, t]:
                place = int(z.where[b, t])
                row, column = place // grid.columns, place % grid.columns
                over = [((n - 1) * grid.stride + grid.patch) for n in (grid.rows, grid.columns)]
                top = row * grid.stride - ((over[0] - grid.height) // 2 if grid.centred else 0)
                left = column * grid.stride - ((over[1] - grid.width) // 2 if grid.centred else 0)
                for i, j, c in itertools.product(range(grid.patch), range(grid.patch), range(channels)):
                    if 0 <= top + i < grid.height and 0 <= left + j < grid.width:
                        value = parts[int(z.what[b, t]), c, i, j]
                        canvas[c, top + i, left + j] = shown(canvas[c, top + i, left + j], value)
            out[b, t] = canvas
    return out


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_render_and_its_steps_equal_the_loops(grid: Grid, channels: int) -> None:
    bank, z = draw(grid, channels)
    expected = loop_render(bank, z, grid)
    np.testing.assert_array_equal(render(bank, z, grid).numpy(), expected[:, -1])
    for paste_them in (paste_steps, paste_steps_at_once):
        steps = paste_them(gather_parts(bank, z, grid), z.where, grid)
        np.testing.assert_array_equal(steps.numpy(), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_aligned_paste_equals_the_loops(grid: Grid) -> None:
    bank, z = draw(grid, 3, grid.places)
    z = PartSequence(z.whether, torch.arange(grid.places).expand(BATCH, -1), z.what)
    canvas = paste_aligned(gather_parts(bank, z, grid), grid)
    np.testing.assert_array_equal(canvas.numpy(), loop_render(bank, z, grid)[:, -1])


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_a_pixels_gradient_goes_to_the_part_that_shows(background: float) -> None:
    grid = Grid(7, 8, 3, 2, background=background)
    g = torch.Generator().manual_seed(2)
    parts = 0.1 + 0.8 * torch.rand(1, 5, 2, 3, 3, generator=g)
    parts.requires_grad_()
    where = torch.tensor([[0, 1, 0, 4, grid.places - 1]])
    weight = torch.rand(1, 2, grid.height, grid.width, generator=g)
    (paste(parts, where, grid) * weight).sum().backward()
    values = parts.detach().numpy()[0]
    ink = 1 - values if background else values
    expected = np.zeros_like(values)
    for c in range(2):
        for row in range(grid.height):
            for column in range(grid.width):
                showing, best = None, 0.0
                for t, place in enumerate(where[0].tolist()):
                    i = row - (place // grid.columns) * grid.stride
                    j = column - (place % grid.columns) * grid.stride
                    if 0 <= i < 3 and 0 <= j < 3 and ink[t, c, i, j] > best:
                        showing, best = (t, c, i, j), float(ink[t, c, i, j])
                if showing is not None:
                    expected[showing] = weight[0, c, row, column]
    assert parts.grad is not None
    np.testing.assert_array_equal(parts.grad.numpy()[0], expected)
