"""The pictures of an edit show exactly the given pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.pages import GUTTER, LINE, OUTLINE
from npdraw_dist.edit.pictures import save_edit, save_interpolation
from tests.helpers.pixels import cell, enlarged, few_colours, gif_frames, random_images, rgb


@pytest.mark.parametrize(("side", "canvas"), [(28, 28), (64, 32)])
def test_an_edit_frames_its_region_on_each_canvas(tmp_path: Path, side: int, canvas: int) -> None:
    grid = Grid(canvas, canvas, 5, 5)
    images, canvases = random_images(3, 1, side, side) * 0.5, random_images(3, 1, canvas, canvas) * 0.5
    region = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    region[1:3, 2:] = True
    for chosen in (region.view(-1), torch.zeros(grid.places, dtype=torch.bool)):
        save_edit(tmp_path / "edit.png", canvases, images, ["A", "B", "both"], chosen, grid)
        page = rgb(tmp_path / "edit.png")
        tile = side * -(-224 // side)
        left = page.shape[1] - 3 * (tile + GUTTER)
        scale = tile // canvas
        for column in range(3):
            x = left + column * (tile + GUTTER)
            shown = page[GUTTER : GUTTER + tile, x : x + tile]
            framed = (shown == np.array(OUTLINE)).all(-1)
            if chosen.any():
                rows, columns = np.nonzero(framed)
                box = (rows.min(), rows.max(), columns.min(), columns.max())
                assert box == (5 * scale, 15 * scale - 1, 10 * scale, tile - 1)
            else:
                assert not framed.any()
            np.testing.assert_array_equal(shown[~framed], enlarged(canvases[column], scale)[~framed])
            below = page[2 * GUTTER + LINE + tile :, x : x + tile][:tile]
            np.testing.assert_array_equal(below, enlarged(images[column], tile // side))


def test_an_interpolation_is_a_frame_a_row(tmp_path: Path) -> None:
    images, canvases = few_colours(random_images(4, 3, 64, 64)), few_colours(random_images(4, 3, 32, 32))
    save_interpolation(tmp_path / "i.gif", canvases, images)
    frames, durations = gif_frames(tmp_path / "i.gif")
    assert len(frames) == 4
    assert durations[-1] > durations[0]
    assert np.abs(cell(frames[2], 0, 0, 256) - enlarged(canvases[2], 8)).mean() < 1
