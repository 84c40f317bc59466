"""The pictures by their pixels: what was given is what is seen."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank
from npdraw_dist.measure import pictures
from npdraw_dist.measure.distances import Neighbours
from npdraw_dist.measure.pictures import GUTTER, LINE, OUTLINE, WIDTH
from tests.helpers.pixels import cell, enlarged, margin_of, random_images, rgb


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 28, 4), (3, 64, 2)])
def test_sheet_shows_each_image_enlarged(channels: int, side: int, factor: int) -> None:
    images = random_images(5, channels, side, side)
    page = rgb(pictures.sheet(images, 3, pictures.TILE))
    tile = side * factor
    assert page.shape == (2 * (tile + GUTTER) + GUTTER, 3 * (tile + GUTTER) + GUTTER, 3)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(cell(page, index // 3, index % 3, tile), enlarged(image, factor))
    assert (page[:GUTTER] == pictures.PAPER).all()


@pytest.mark.parametrize("sizes", [None, [3, 999, 1_250, 47_000, 2_000_000, 0, 1]])
def test_a_grey_bank_keeps_its_order(tmp_path: Path, sizes: list[int] | None) -> None:
    bank = PartBank(random_images(7, 1, 4, 4))
    pictures.save_bank(tmp_path / "bank.png", bank, sizes)
    page = rgb(tmp_path / "bank.png")
    text = LINE if sizes else 0
    np.testing.assert_array_equal(cell(page, 0, 1, 52, (0, LINE)), enlarged(bank.parts[1], 13))
    np.testing.assert_array_equal(cell(page, 1, 2, 52, (0, LINE + text)), enlarged(bank.parts[6], 13))
    assert page.shape[:2] == (LINE + 2 * (52 + GUTTER + text) + GUTTER, 4 * (52 + GUTTER) + GUTTER)


def test_a_bank_in_colour_is_shown_by_colour(tmp_path: Path) -> None:
    """Index and number of patches are below each part; the bank stays as it is."""
    blue, pale, red, green = (0.1, 0.2, 0.9), (0.9, 0.9, 0.9), (1, 0, 0.05), (0.1, 0.8, 0.1)
    dark_red, black, yellow = (0.5, 0, 0.02), (0, 0, 0), (1, 1, 0)
    colours = torch.tensor([blue, pale, red, green, dark_red, black, yellow])
    bank = PartBank(colours[..., None, None].expand(-1, -1, 4, 4).contiguous())
    before = bank.parts.clone()
    pictures.save_bank(tmp_path / "bank.png", bank, list(range(7)))
    assert torch.equal(bank.parts, before)
    page = rgb(tmp_path / "bank.png")
    for place, colour in enumerate((black, pale, dark_red, red, yellow, green, blue)):
        row, column = place // 4, place % 4
        origin = (0, LINE + row * 2 * LINE)
        shown = torch.tensor(colour)[:, None, None].expand(3, 4, 4)
        np.testing.assert_array_equal(cell(page, row, column, 52, origin), enlarged(shown, 13))
        below = cell(page, row, column, 52, (0, origin[1] + 52))
        assert below[:LINE].min() < 150, "no index"
        assert below[LINE : 2 * LINE].min() < 150, "no number of patches"


def test_parse_preview_has_image_canvas_and_difference(tmp_path: Path) -> None:
    canvases = random_images(20, 3, 32, 32)
    images = torch.nn.functional.interpolate(canvases, scale_factor=2.0)
    canvases = canvases - 0.0625 * (torch.arange(32) < 16)  # the left half differs
    images, canvases = images.clamp(0.1), canvases.clamp(0)
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    assert page.shape[1] <= WIDTH
    margin = margin_of(page, 8, 128)
    block = 3 * (128 + GUTTER) + LINE + 3 * GUTTER
    assert page.shape[0] == 2 * block - 3 * GUTTER + GUTTER
    for number in (0, 7, 8, 15):
        origin, column = (margin, number // 8 * block), number % 8
        for row, image in enumerate([images, canvases]):
            expected = enlarged(image[number], 4 if row else 2)
            np.testing.assert_array_equal(cell(page, row, column, 128, origin), expected)


@pytest.mark.parametrize(("value", "small"), [(0.0, 0.05), (0.5, -0.05), (1.0, -0.05)])
def test_a_small_difference_is_seen_on_any_background(tmp_path: Path, value: float, small: float) -> None:
    canvases = torch.full((3, 1, 28, 28), value)
    images = canvases.clone()
    images[:, :, 5:9, 5:9] += small
    images[:, :, 20:, :] = 1 - value if value != 0.5 else 0.9  # and large ones elsewhere
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    shown = cell(page, 2, 1, 112, (margin_of(page, 3, 112), 0))
    none, near, far = shown[0, 0], shown[24, 24], shown[100, 50]
    assert none.tolist() == [255, 255, 255]
    assert np.abs(near - none).max() > 40
    assert near.sum() > far.sum() + 150, "the larger the darker"


def test_samples_are_pairs_of_one_size_on_a_page(tmp_path: Path) -> None:
    side, canvas, tile = 64, 32, 128
    images, canvases = random_images(14, 3, side, side), random_images(14, 3, canvas, canvas).flip(0)
    pictures.save_samples(tmp_path / "samples.png", images, canvases)
    page = rgb(tmp_path / "samples.png")
    columns = (page.shape[1] - 2 * GUTTER) // (2 * tile + 3 + 2 * GUTTER)
    assert 2 <= columns <= 6
    assert page.shape[1] <= 1700
    width, height, gutter = 2 * tile + 3, tile + 2, 2 * GUTTER
    for index in (0, columns + 1, 13):
        top = LINE + gutter + index // columns * (height + gutter) + 1
        left = gutter + index % columns * (width + gutter) + 1
        shown = page[top : top + tile, left : left + 2 * tile + 1]
        np.testing.assert_array_equal(shown[:, :tile], enlarged(canvases[index], tile // canvas))
        np.testing.assert_array_equal(shown[:, tile + 1 :], enlarged(images[index], tile // side))


def test_samples_without_canvases_are_a_grid(tmp_path: Path) -> None:
    images = random_images(5, 1, 28, 28)
    pictures.save_samples(tmp_path / "samples.png", images, None)
    page = rgb(tmp_path / "samples.png")
    for index, image in enumerate(images):
        np.testing.assert_array_equal(cell(page, index // 3, index % 3, 112), enlarged(image, 4))


def test_neighbours_are_below_their_samples(tmp_path: Path) -> None:
    side, tile, columns = 28, 84, 16
    samples = random_images(16, 3, side, side)
    nearest = (255 * random_images(16, 3, side, side).flip(0)).round().byte()
    chosen = (255 * random_images(16, 3, side, side).flip(1)).round().byte()
    found = Neighbours(nearest, torch.rand(16), chosen, 12_345)
    pictures.save_neighbours(tmp_path / "neighbours.png", samples, found)
    page = rgb(tmp_path / "neighbours.png")
    assert page.shape[1] <= WIDTH
    origin = (margin_of(page, columns, tile), LINE)
    for number in (0, 5, 15):
        for row, (image, below) in enumerate(((samples, 0), (nearest / 255, 0), (chosen / 255, LINE))):
            shown = cell(page, row, number, tile, (origin[0], origin[1] + below))
            np.testing.assert_array_equal(shown, enlarged(image[number], tile // side))


def test_rows_that_are_wider_than_a_page_are_cut_into_blocks(tmp_path: Path) -> None:
    tile, columns = 128, 8
    images, decoded = random_images(16, 1, 64, 64), random_images(16, 1, 64, 64) / 2
    canvases = images[..., ::2, ::2].contiguous()
    rows = {"image": images, "canvas": canvases, "reconstruction": decoded}
    (tmp_path / "page.png").write_bytes(pictures.rows_png(rows))
    page = rgb(tmp_path / "page.png")
    block = 3 * (tile + GUTTER) + 3 * GUTTER
    assert page.shape[0] == 2 * block - 2 * GUTTER
    assert page.shape[1] <= WIDTH
    origin = (margin_of(page, columns, tile), block)
    for row, group in enumerate(rows.values()):
        shown = cell(page, row, columns - 1, tile, origin)
        np.testing.assert_array_equal(shown, enlarged(group[15], tile // group.shape[-1]))


@pytest.mark.parametrize(("side", "canvas"), [(28, 28), (64, 32)])
def test_an_edit_frames_its_region_on_each_canvas(tmp_path: Path, side: int, canvas: int) -> None:
    grid = Grid(canvas, canvas, 5, 5)
    images, canvases = random_images(3, 1, side, side) * 0.5, random_images(3, 1, canvas, canvas) * 0.5
    region = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    region[1:3, 2:] = True
    for chosen in (region.view(-1), torch.zeros(grid.places, dtype=torch.bool)):
        pictures.save_edit(tmp_path / "edit.png", canvases, images, ["A", "B", "both"], chosen, grid)
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


@pytest.mark.parametrize("channels", [1, 3])
def test_png_and_bank_sheet_hold_the_pixels(channels: int) -> None:
    image = random_images(channels, 9, 7)
    with Image.open(io.BytesIO(pictures.png(image))) as found:
        assert found.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(rgb(found), enlarged(image, 1))
    bank = PartBank(random_images(5, channels, 3, 3))
    with Image.open(io.BytesIO(pictures.bank_sheet(bank, 2))) as found:
        sheet = rgb(found)
    assert sheet.shape == (9, 6, 3)
    np.testing.assert_array_equal(sheet[3:6, 3:6], enlarged(bank.parts[3], 1))
    assert (sheet[6:, 3:] == 0).all()
