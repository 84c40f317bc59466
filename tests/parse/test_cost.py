"""Gains against direct sums of squares, and the bound of a gain against the gain."""

from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank
from npdraw_dist.parse.cost import (
    EmptyCanvasGain,
    best_rows,
    bound_coefficients,
    canvas_gain,
)


@pytest.mark.parametrize(
    "sizes",
    [(28, 28, 5, 5), (7, 6, 3, 2), (9, 5, 4, 3), (8, 8, 4, 4), (28, 28, 5, 5, True), (9, 6, 4, 4, True)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_gain_on_an_empty_canvas_counts_only_pixels_of_the_canvas(
    sizes: tuple[Any, ...], channels: int
) -> None:
    torch.manual_seed(0)
    grid = Grid(*sizes)
    bank = torch.rand(5, channels, grid.patch, grid.patch)
    images = torch.rand(3, channels, grid.height, grid.width)
    gains = EmptyCanvasGain(PartBank(bank), grid)
    scores = gains.scores(images).view(5, grid.places, 3)
    norms = -gains.scores(torch.zeros_like(images[:1])).T
    for place, (row, column) in enumerate(grid.corners.tolist()):
        x = images[:, :, max(row, 0) : row + grid.patch, max(column, 0) : column + grid.patch].double()
        part = bank[:, :, max(-row, 0) : grid.height - row, max(-column, 0) : grid.width - column].double()
        cost = (part[:, None] - x).square().sum((2, 3, 4))
        gain = x.square().sum((1, 2, 3)) - cost
        torch.testing.assert_close(scores[:, place].double(), gain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms[place].double(), part.square().sum((1, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 50, 300])
def test_best_rows_is_argmax_with_the_first_of_equals(rows: int) -> None:
    scores = np.random.default_rng(rows).integers(-9, 9, (rows, 200)).astype(np.float32)
    best, index = best_rows(torch.from_numpy(scores.copy()))
    np.testing.assert_array_equal(best.numpy(), scores.max(0))
    np.testing.assert_array_equal(index.numpy(), scores.argmax(0))


def test_gain_on_a_drawn_canvas() -> None:
    rng = np.random.default_rng(0)
    parts, image, canvas = rng.random((4, 12)), rng.random((12, 6)), rng.random((12, 6)) * 0.7
    gain = canvas_gain(*(torch.from_numpy(a) for a in (parts, image, canvas))).numpy()
    after = np.maximum(parts[:, :, None], canvas)
    expected = ((canvas - image) ** 2).sum(0) - ((after - image) ** 2).sum(1)
    np.testing.assert_allclose(gain, expected, atol=1e-12)


@pytest.mark.parametrize("largest", [1.0, 0.7])
def test_bound_is_never_under_the_gain(largest: float) -> None:
    line = torch.linspace(0, 1, 41, dtype=torch.float64)
    image, canvas, part = torch.meshgrid(line, line * largest, line * largest, indexing="ij")
    p, s = bound_coefficients(image, canvas, largest)
    before, after = (canvas - image).square(), (torch.maximum(canvas, part) - image).square()
    bound, gain = p * part - s * part.square(), before - after
    assert (bound >= gain - 1e-12).all()
    empty = canvas == 0
    torch.testing.assert_close(bound[empty], gain[empty])
    full = canvas >= largest
    assert (bound[full].abs() < 1e-12).logical_or((image > canvas)[full]).all()
