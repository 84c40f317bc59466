"""Gains against direct sums of squares, and bounds of gains against gains."""

from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank
from npdraw_dist.parse.cost import SKIPS_FROM, EmptyCanvasGain, best_rows, bound_coefficients


def dim_images(grid: Grid, channels: int) -> torch.Tensor:
    """(6, C, H, W) uint8: three that are half black and a quarter dim, one of one dot, two black."""
    rng = np.random.default_rng(0)
    size = (6, channels, grid.height, grid.width)
    images = rng.integers(0, 256, size) * (rng.random(size) < 0.3)
    images[:, :, :, grid.width // 2 :] //= 16
    images[:3, :, : grid.height // 2] = 0
    images[3:] = 0
    images[3, 0, -1, -1] = 200
    return torch.from_numpy(images.astype(np.uint8))


@pytest.mark.parametrize("least", [0.0, 0.5])
@pytest.mark.parametrize(
    ("sizes", "channels"), [((8, 8, 4, 4), 3), ((9, 7, 4, 3), 1), ((9, 6, 4, 4, True), 1)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_dim_places_are_left_out_and_nothing_that_gains_enough(
    least: float, sizes: tuple[Any, ...], channels: int, dtype: torch.dtype
) -> None:
    grid = Grid(*sizes)
    torch.manual_seed(0)
    bank = PartBank(torch.rand(SKIPS_FROM, channels, grid.patch, grid.patch) ** 6)
    images = dim_images(grid, channels)
    images = images if dtype == torch.uint8 else images / 255
    some, all_ = EmptyCanvasGain(bank, grid, least), EmptyCanvasGain(bank, grid, least)
    assert some.skips
    all_.skips = False
    gain, part, energy = some.best(images)
    full_gain, full_part, full_energy = all_.best(images)
    enough = (full_gain >= least) & (full_gain > 0)
    assert enough.any()
    assert not enough.all()
    torch.testing.assert_close(gain[enough], full_gain[enough])
    assert torch.equal(part[enough], full_part[enough])
    assert ((gain == 0) | gain.isclose(full_gain))[~enough].all()
    assert torch.equal(energy, full_energy)


def test_a_place_with_just_enough_ink_is_not_dim() -> None:
    """All its pixels are equal, so that its brightest one is as dim as it can be."""
    grid, least = Grid(8, 8, 4, 4), 0.05
    parts = torch.ones(SKIPS_FROM, 1, 4, 4)
    parts[7] = (1.001 * least / 16) ** 0.5
    gain, part, _ = EmptyCanvasGain(PartBank(parts), grid, least).best(parts[7:8].repeat(1, 1, 2, 2))
    assert (gain >= least).all()
    assert (part == 7).all()


@pytest.mark.parametrize("rows", [1, 50, 300])
def test_best_rows_is_argmax_with_the_first_of_equals(rows: int) -> None:
    scores = np.random.default_rng(rows).integers(-9, 9, (rows, 200)).astype(np.float32)
    best, index = best_rows(torch.from_numpy(scores.copy()))
    np.testing.assert_array_equal(best.numpy(), scores.max(0))
    np.testing.assert_array_equal(index.numpy(), scores.argmax(0))


@pytest.mark.parametrize("largest", [1.0, 0.7])
def test_bound_is_never_under_the_gain(largest: float) -> None:
    line = torch.linspace(0, 1, 41, dtype=torch.float64)
    image, canvas, part = torch.meshgrid(line, line * largest, line * largest, indexing="ij")
    p, s = bound_coefficients(image, canvas, largest)
    before, after = (canvas - image).square(), (torch.maximum(canvas, part) - image).square()
    bound, gain = p * part - s * part.square(), before - after
    assert (bound >= gain - 1e-12).all()
    empty, full = canvas == 0, canvas >= largest
    torch.testing.assert_close(bound[empty], gain[empty])
    assert (bound[full].abs() < 1e-12).logical_or((image > canvas)[full]).all()
