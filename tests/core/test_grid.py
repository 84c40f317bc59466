"""The grid against its formula, NumPy slices and brute force over pixels."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.core.grid import Grid

# (H, W, P, stride): disjoint and exact, disjoint and cropped, overlapping and exact, overlapping and cropped.
SIZES: list[tuple[Any, ...]] = [(4, 6, 2, 2), (7, 8, 3, 3), (7, 9, 3, 2), (8, 6, 5, 2), (5, 5, 5, 1)]
SIZES += [(*size, True) for size in [(4, 6, 2, 2), (7, 7, 3, 3), (28, 28, 5, 5), (8, 7, 5, 2), (9, 7, 4, 4)]]


def brute_corners(grid: Grid) -> list[tuple[int, int]]:
    rows = range(math.ceil((grid.height - grid.patch) / grid.stride) + 1)
    columns = range(math.ceil((grid.width - grid.patch) / grid.stride) + 1)
    top = left = 0
    if grid.centred:  # half of what hangs over, rounded down
        top = ((len(rows) - 1) * grid.stride + grid.patch - grid.height) // 2
        left = ((len(columns) - 1) * grid.stride + grid.patch - grid.width) // 2
    return [(r * grid.stride - top, c * grid.stride - left) for r in rows for c in columns]


@pytest.mark.parametrize("size", SIZES)
def test_places_follow_the_formula_in_raster_order_and_cover_every_pixel(size: tuple[Any, ...]) -> None:
    grid = Grid(*size)
    corners = brute_corners(grid)
    assert grid.places == len(corners) == grid.rows * grid.columns
    assert grid.disjoint == (grid.stride == grid.patch)
    assert grid.corners.dtype == torch.int64
    assert [tuple(corner) for corner in grid.corners.tolist()] == corners
    seen = np.zeros((grid.height, grid.width), bool)
    for row, column in corners:
        seen[max(row, 0) : row + grid.patch, max(column, 0) : column + grid.patch] = True
    assert seen.all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "background"), [(1, 0.0), (3, 1.0)])
def test_unfold_cuts_numpy_slices_with_background_over_the_edge(
    size: tuple[Any, ...], channels: int, background: float
) -> None:
    grid = replace(Grid(*size), background=background)
    images = torch.rand(2, channels, grid.height, grid.width)
    patches = grid.unfold(images).numpy()
    assert patches.shape == (2, grid.places, channels, grid.patch, grid.patch)
    for place, (row, column) in enumerate(brute_corners(grid)):
        expected = np.full((2, channels, grid.patch, grid.patch), background, np.float32)
        for i, j in itertools.product(range(grid.patch), repeat=2):
            if 0 <= row + i < grid.height and 0 <= column + j < grid.width:
                expected[:, :, i, j] = images.numpy()[:, :, row + i, column + j]
        np.testing.assert_array_equal(patches[:, place], expected)


@pytest.mark.parametrize("size", SIZES)
def test_fold_sum_is_the_adjoint_of_unfold(size: tuple[Any, ...]) -> None:
    grid = Grid(*size)
    images = torch.randn(2, 3, grid.height, grid.width, dtype=torch.float64)
    patches = torch.randn(2, grid.places, 3, grid.patch, grid.patch, dtype=torch.float64)
    folded = grid.fold_sum(patches)
    assert folded.shape == images.shape
    assert float((grid.unfold(images) * patches).sum()) == pytest.approx(float((images * folded).sum()))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_by_brute_force(size: tuple[Any, ...]) -> None:
    grid = Grid(*size)
    sets = []
    for row, column in brute_corners(grid):
        first = (row + grid.top) * grid.padded_width + column + grid.left
        sets.append([first + i * grid.padded_width + j for i, j in np.ndindex(grid.patch, grid.patch)])
    assert grid.pixels.tolist() == sets


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_pad_adds_the_background_and_crop_takes_it_off(kind: torch.dtype, background: float) -> None:
    grid = Grid(7, 9, 4, 3, True, background)
    images = torch.randint(2, (2, 1, 7, 9)).to(kind)
    padded = grid.pad(images)
    assert padded.dtype == kind
    assert padded.shape == (2, 1, grid.padded_height, grid.padded_width)
    assert torch.equal(grid.crop(padded), images)
    added = (padded.numel() - images.numel()) * background * (255 if kind == torch.uint8 else 1)
    assert float(padded.double().sum()) == float(images.double().sum()) + added


def test_ink_is_the_distance_to_the_background_and_its_own_inverse() -> None:
    black, white = Grid(4, 4, 2, 2), Grid(4, 4, 2, 2, background=1.0)
    tensor = torch.arange(256, dtype=torch.uint8)
    assert black.ink(tensor) is tensor
    assert white.ink(tensor).dtype == torch.uint8
    assert white.ink(tensor).tolist() == white.ink(tensor.numpy()).tolist() == list(range(255, -1, -1))
    assert white.ink(torch.tensor([0.0, 0.25, 1.0])).tolist() == [1.0, 0.75, 0.0]
    assert black.of_ink is black
    assert white.of_ink == black


@pytest.mark.parametrize(
    ("size", "key"),
    [
        ((4, 6, 5, 1), "grid.patch"),
        ((4, 4, 0, 1), "grid.patch"),
        ((9, 9, 3, 4), "grid.stride"),
        ((9, 9, 3, 0), "grid.stride"),
        ((4, 4, 2, 2, False, 0.5), r"background is 0\.5"),
    ],
)
def test_impossible_sizes_are_refused(size: tuple[Any, ...], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Grid(*size)
