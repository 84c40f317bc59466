"""The posters of edits and completions, by their pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.pages import GUTTER, LINE, OUTLINE, PAPER
from npdraw_dist.edit.posters import CompletionRow, EditRow, covered, save_completions, save_edits
from tests.helpers.pixels import cells, enlarged, found, random_images, reading_order, rgb

# The posters of docs/: canvases of 100 px a file, 5 px a pixel.
POSTER = Grid(12, 20, 4, 4)  # 3 x 5 places
SCALE = 5


def places(*named: int) -> torch.Tensor:
    mask = torch.zeros(POSTER.places, dtype=torch.bool)
    mask[list(named)] = True
    return mask


def edge(region: torch.Tensor) -> NDArray[np.bool_]:
    """Pixels of the region with a pixel outside it less than 3 px away, by brute force."""
    inside = np.pad(np.kron(covered(region, POSTER), np.ones((SCALE, SCALE), dtype=bool)), 2)
    height, width = inside.shape
    found = np.zeros((height - 4, width - 4), dtype=bool)
    for row in range(height - 4):
        for column in range(width - 4):
            window = inside[row : row + 5, column : column + 5]
            found[row, column] = window[2, 2] and not window.all()
    return found


@pytest.mark.parametrize("grid", [POSTER, Grid(9, 9, 4, 3), Grid(10, 9, 4, 3, centred=True)])
def test_covered_pixels_are_those_of_the_places(grid: Grid) -> None:
    mask = torch.rand(grid.places, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = np.zeros((grid.height, grid.width), dtype=bool)
    for top, left in grid.corners[mask].tolist():
        rows, columns = (slice(max(start, 0), start + grid.patch) for start in (top, left))
        expected[rows, columns] = True
    np.testing.assert_array_equal(covered(mask, grid), expected)


@pytest.mark.parametrize(("channels", "downscale"), [(1, 1), (3, 2)])
def test_edits_are_rows_of_parts_and_three_pairs(tmp_path: Path, channels: int, downscale: int) -> None:
    region = places(0, 1, 8)
    canvases = random_images(3, channels, 12, 20)
    images = random_images(3, channels, 12 * downscale, 20 * downscale)
    parts, where = random_images(2, channels, 4, 4) * 0.5, torch.tensor([0, 9])
    rows = [EditRow(canvases * share, images, region, parts, where) for share in (0.5, 1)]
    save_edits(tmp_path / "edits.png", rows, POSTER)
    tile = (100, 120)[downscale - 1]
    factor, width, height = tile // 20, tile + GUTTER, tile * 12 // 20 + GUTTER
    page = rgb(tmp_path / "edits.png")
    assert page.shape[:2] == (LINE + 2 * height + GUTTER, 7 * width + GUTTER)
    for index, row in enumerate(rows):
        top = LINE + GUTTER + index * height
        shown = [page[top : top + height - GUTTER, GUTTER + i * width :][:, :tile] for i in range(7)]
        apart = (shown[0] != PAPER).any(-1).sum()
        side = 4 * round((apart / 2) ** 0.5 / 4)
        assert apart == 2 * side**2 > 0, "each part is whole, on paper"
        for column in range(3):
            canvas, image = shown[1 + 2 * column : 3 + 2 * column]
            np.testing.assert_array_equal(image, enlarged(row.images[column], factor // downscale))
            framed = np.zeros(canvas.shape[:2], dtype=bool)
            if column > 0 and downscale == 1:
                framed = edge(region)
                assert (canvas[framed] == OUTLINE).all()
            if column == 0 or downscale == 1:
                expected = enlarged(row.canvases[column], factor)
                np.testing.assert_array_equal(canvas[~framed], expected[~framed])


def test_completions_show_what_was_kept_and_hatch_the_rest(tmp_path: Path) -> None:
    keep = places(0, 1, 2, 5, 6, 7, 14)
    original, images = random_images(3, 24, 40), random_images(4, 3, 24, 40)
    row = CompletionRow(original, random_images(3, 12, 20) * 0.5, keep, images)
    save_completions(tmp_path / "completion.png", [row], POSTER)
    page = rgb(tmp_path / "completion.png")
    assert cells(page, torch.cat([original[None], images]), 3) == reading_order(5, 5)
    top, left = found(page, enlarged(original, 3))
    shown = page[top : top + 72, left + 120 + GUTTER :][:, :120]
    known = np.kron(covered(keep, POSTER), np.ones((6, 6), dtype=bool))
    np.testing.assert_array_equal(shown[known], enlarged(row.canvas, 6)[known])
    unknown = shown[~known]
    assert (unknown[:, 0] == unknown[:, 2]).all()
    assert len(np.unique(unknown[:, 0])) == 2
    assert unknown.min() > 128
