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
from tests.helpers.pixels import cell, enlarged, random_images, rgb


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 28, 4), (3, 32, 4), (3, 64, 2)])
def test_sheet_shows_each_image_enlarged(channels: int, side: int, factor: int) -> None:
    images = random_images(5, channels, side, side)
    page = rgb(pictures.sheet(images, 3, pictures.TILE))
    tile = side * factor
    assert page.shape == (2 * (tile + GUTTER) + GUTTER, 3 * (tile + GUTTER) + GUTTER, 3)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(cell(page, index // 3, index % 3, tile), enlarged(image, factor))
    assert (page[:GUTTER] == pictures.PAPER).all()


def test_sheet_captions_lie_below_the_tiles() -> None:
    images = random_images(2, 1, 5, 5)
    page = rgb(pictures.sheet(images, 2, tile=50, captions=["12", ""]))
    assert page.shape[0] == 50 + LINE + 2 * GUTTER
    np.testing.assert_array_equal(cell(page, 0, 1, 50), enlarged(images[1], 10))
    below = page[GUTTER + 50 : GUTTER + 50 + LINE]
    assert below[:, :50].min() < 150
    assert (below[:, 60:] == pictures.PAPER).all()


@pytest.mark.parametrize("sizes", [None, [3, 999, 1_250, 47_000, 2_000_000, 0, 1]])
def test_a_grey_bank_keeps_its_order(tmp_path: Path, sizes: list[int] | None) -> None:
    bank = PartBank(random_images(7, 1, 4, 4))
    pictures.save_bank(tmp_path / "bank.png", bank, sizes)
    page = rgb(tmp_path / "bank.png")
    text = LINE if sizes else 0
    np.testing.assert_array_equal(cell(page, 0, 1, 52, (0, LINE)), enlarged(bank.parts[1], 13))
    np.testing.assert_array_equal(cell(page, 1, 2, 52, (0, LINE + text)), enlarged(bank.parts[6], 13))
    assert page.shape[1] == 4 * (52 + GUTTER) + GUTTER
    assert page.shape[0] == LINE + 2 * (52 + GUTTER + text) + GUTTER


@pytest.mark.parametrize("sizes", [None, [3, 999, 1_250, 47_000, 2_000_000, 0, 1]])
def test_a_bank_in_colour_is_shown_by_colour(tmp_path: Path, sizes: list[int] | None) -> None:
    """Index and number of patches are below each part; the bank stays as it is."""
    colours = torch.tensor(
        [
            [0.1, 0.2, 0.9],
            [0.9, 0.9, 0.9],
            [1, 0, 0.05],
            [0.1, 0.8, 0.1],
            [0.5, 0, 0.02],
            [0, 0, 0],
            [1, 1, 0],
        ]
    )
    bank = PartBank(colours[..., None, None].expand(-1, -1, 4, 4).contiguous())
    before = bank.parts.clone()
    pictures.save_bank(tmp_path / "bank.png", bank, sizes)
    assert torch.equal(bank.parts, before)
    page = rgb(tmp_path / "bank.png")
    lines = 2 if sizes else 1
    step = 52 + GUTTER + lines * LINE
    assert page.shape[0] == LINE + 2 * step + GUTTER
    # black, white, dark red, red | yellow, green, blue
    for place, index in enumerate((5, 1, 4, 2, 6, 3, 0)):
        origin = (0, LINE + place // 4 * (step - 52 - GUTTER))
        tile = cell(page, place // 4, place % 4, 52, origin)
        np.testing.assert_array_equal(tile, enlarged(bank.parts[index], 13))
        top, left = LINE + GUTTER + place // 4 * step + 52, GUTTER + place % 4 * (52 + GUTTER)
        for line in range(lines):
            text = page[top + line * LINE : top + (line + 1) * LINE, left : left + 52]
            assert text.min() < 150, "no caption"


def test_the_hue_of_a_part_is_that_of_its_coloured_pixels() -> None:
    """A green edge on white paper is beside green, and what has hardly any colour is grey."""
    edge = torch.ones(3, 4, 4)
    edge[:, 0] = torch.tensor([0.1, 0.7, 0.2])[:, None]
    pale = torch.ones(3, 4, 4)
    pale[2, 0, 0] = 0.5
    green, blue, red = (torch.zeros(3, 4, 4) for _ in range(3))
    green[1], blue[2], red[0] = 0.5, 0.5, 0.5
    assert pictures.colour_order(torch.stack([edge, blue, pale, red, green])) == [2, 3, 4, 0, 1]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1250, "1.2k"), (47_900, "47k"), (2_000_000, "2.0M")]
)
def test_short_numbers(number: int, text: str) -> None:
    assert pictures.short(number) == text


def test_parse_preview_has_image_canvas_and_difference(tmp_path: Path) -> None:
    canvases = random_images(20, 3, 32, 32)
    images = torch.nn.functional.interpolate(canvases, scale_factor=2.0)
    canvases = canvases - 0.0625 * (torch.arange(32) < 16)  # the left half differs
    images, canvases = images.clamp(0.1), canvases.clamp(0)
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    assert page.shape[1] <= WIDTH
    margin = page.shape[1] - (8 * (128 + GUTTER) + GUTTER)
    assert 20 < margin < 120
    assert page[:, :margin].min() < 150, "no labels"
    block = 3 * (128 + GUTTER) + LINE + 3 * GUTTER
    assert page.shape[0] == 2 * block - 3 * GUTTER + GUTTER
    for number in (0, 7, 8, 15):
        origin, column = (margin, number // 8 * block), number % 8
        for row, image in enumerate([images, canvases]):
            expected = enlarged(image[number], 4 if row else 2)
            np.testing.assert_array_equal(cell(page, row, column, 128, origin), expected)
        caption = page[origin[1] + 3 * (128 + GUTTER) :][:LINE, margin + column * 132 + GUTTER :][:, :128]
        assert caption.min() < 150, "no error is written"


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_small_difference_is_seen_on_any_background(tmp_path: Path, value: float, sign: int) -> None:
    canvases = torch.full((3, 1, 28, 28), value)
    images = canvases.clone()
    images[:, :, 5:9, 5:9] = value + (sign if 0 <= value + 0.05 * sign <= 1 else -sign) * 0.05
    images[:, :, 20:, :] = 1 - value if value != 0.5 else 0.9  # and large ones elsewhere
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    margin = page.shape[1] - (3 * (112 + GUTTER) + GUTTER)
    shown = cell(page, 2, 1, 112, (margin, 0))
    none, small, large = shown[0, 0], shown[24, 24], shown[100, 50]
    assert none.tolist() == [255, 255, 255]
    assert np.abs(small - none).max() > 40
    assert small.sum() > large.sum() + 150, "the larger the darker"


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.0, 32), (0.03, 32), (0.05, 16), (0.1, 8), (0.25, 4), (0.3, 2), (1.0, 2)]
)
def test_the_factor_of_differences_leaves_them_below_one(largest: float, factor: int) -> None:
    assert pictures.difference_factor(-torch.full((2, 1, 4, 4), largest)) == factor


def test_one_pixel_does_not_set_the_factor() -> None:
    difference = torch.full((1, 1, 28, 28), 0.02)
    difference[0, 0, 0, 0] = 1.0
    assert pictures.difference_factor(difference) == 32


def test_differences_of_any_channel_darken() -> None:
    difference = torch.tensor([[0.0, 0.0, 0.0], [0.1, -0.2, 0.0], [0.0, 0.0, 0.25], [-0.9, 0.1, 0.2]])
    found = pictures.difference_colours(difference[..., None, None], 2)[..., 0, 0]
    brightness = found.sum(1).tolist()
    assert brightness == sorted(brightness, reverse=True)
    torch.testing.assert_close(found[0], torch.ones(3))
    torch.testing.assert_close(found[2], pictures.DIFFERENCE_COLOURS[1])
    torch.testing.assert_close(found[3], pictures.DIFFERENCE_COLOURS[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "canvas", "tile", "columns"), [(28, 28, 84, 8), (32, 32, 96, 8), (64, 32, 128, 6)]
)
def test_64_samples_are_pairs_of_one_size_on_a_page(
    tmp_path: Path, side: int, canvas: int, tile: int, columns: int
) -> None:
    images, canvases = random_images(64, 3, side, side), random_images(64, 3, canvas, canvas).flip(0)
    pictures.save_samples(tmp_path / "samples.png", images, canvases)
    page = rgb(tmp_path / "samples.png")
    width, height, gutter = 2 * tile + 3, tile + 2, 2 * GUTTER
    rows = -(-64 // columns)
    assert page.shape[:2] == (LINE + rows * (height + gutter) + gutter, columns * (width + gutter) + gutter)
    assert page.shape[1] <= 1700
    for index in (0, columns + 1, 63):
        top = LINE + gutter + index // columns * (height + gutter) + 1
        left = gutter + index % columns * (width + gutter) + 1
        shown = page[top : top + tile, left : left + 2 * tile + 1]
        np.testing.assert_array_equal(shown[:, :tile], enlarged(canvases[index], tile // canvas))
        np.testing.assert_array_equal(shown[:, tile + 1 :], enlarged(images[index], tile // side))


def test_large_samples_are_few_in_a_row(tmp_path: Path) -> None:
    images = random_images(9, 1, 400, 400)
    pictures.save_samples(tmp_path / "a.png", images, images)
    pictures.save_samples(tmp_path / "b.png", images, None)
    for name, columns, tile in (("a.png", 2, 2 * 400 + 3 + GUTTER), ("b.png", 3, 400)):
        assert rgb(tmp_path / name).shape[1] <= columns * (tile + 2 * GUTTER) + 2 * GUTTER


def test_samples_without_canvases_are_a_grid(tmp_path: Path) -> None:
    images = random_images(5, 1, 28, 28)
    pictures.save_samples(tmp_path / "samples.png", images, None)
    page = rgb(tmp_path / "samples.png")
    for index, image in enumerate(images):
        np.testing.assert_array_equal(cell(page, index // 3, index % 3, 112), enlarged(image, 4))


@pytest.mark.parametrize(("side", "tile", "columns"), [(28, 84, 16), (32, 96, 16), (64, 128, 8)])
def test_neighbours_are_below_their_samples(tmp_path: Path, side: int, tile: int, columns: int) -> None:
    samples = random_images(16, 3, side, side)
    nearest = (255 * random_images(16, 3, side, side).flip(0)).round().byte()
    chosen = (255 * random_images(16, 3, side, side).flip(1)).round().byte()
    found = Neighbours(nearest, torch.rand(16), chosen, 12_345)
    pictures.save_neighbours(tmp_path / "neighbours.png", samples, found)
    page = rgb(tmp_path / "neighbours.png")
    margin = page.shape[1] - (columns * (tile + GUTTER) + GUTTER)
    assert 20 < margin < 120
    assert page.shape[1] <= WIDTH
    block = 3 * (tile + GUTTER) + LINE + 3 * GUTTER
    assert page.shape[0] == LINE + 16 // columns * block - 2 * GUTTER
    for number in (0, 5, 15):
        top, column = LINE + number // columns * block, number % columns
        for row, (image, below) in enumerate(((samples, 0), (nearest / 255, 0), (chosen / 255, LINE))):
            tile_shown = cell(page, row, column, tile, (margin, top + below))
            np.testing.assert_array_equal(tile_shown, enlarged(image[number], tile // side))


def test_random_images_are_left_out_if_there_are_too_few(tmp_path: Path) -> None:
    samples, few = random_images(5, 1, 28, 28), torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    found = Neighbours(few[[0, 1, 2, 3, 3]], torch.rand(5), few, 4)
    pictures.save_neighbours(tmp_path / "neighbours.png", samples, found)
    assert rgb(tmp_path / "neighbours.png").shape[0] == LINE + 2 * (112 + GUTTER) + LINE + GUTTER


def test_rows_of_samples_carry_their_names(tmp_path: Path) -> None:
    rows = {"VAE 10%": random_images(3, 1, 28, 28), "DRAW 10%": random_images(3, 1, 28, 28).flip(0)}
    (tmp_path / "rows.png").write_bytes(pictures.rows_png(rows))
    page = rgb(tmp_path / "rows.png")
    margin = page.shape[1] - (3 * (112 + GUTTER) + GUTTER)
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(images):
            np.testing.assert_array_equal(cell(page, row, column, 112, (margin, 0)), enlarged(image, 4))
        label = page[row * 116 : row * 116 + 112, : margin - GUTTER]
        assert label.min() < 150


@pytest.mark.parametrize(("channels", "side", "tile", "columns"), [(1, 28, 84, 16), (3, 64, 128, 8)])
def test_rows_that_are_wider_than_a_page_are_cut_into_blocks(
    tmp_path: Path, channels: int, side: int, tile: int, columns: int
) -> None:
    images, decoded = random_images(16, channels, side, side), random_images(16, channels, side, side) / 2
    canvases = images[..., ::2, ::2].contiguous()
    rows = {"image": images, "canvas": canvases, "reconstruction": decoded}
    (tmp_path / "page.png").write_bytes(pictures.rows_png(rows))
    page = rgb(tmp_path / "page.png")
    block = 3 * (tile + GUTTER) + 3 * GUTTER
    blocks = 16 // columns
    origin = (page.shape[1] - columns * (tile + GUTTER) - GUTTER, (blocks - 1) * block)
    for row, (group, factor) in enumerate(
        ((images, tile // side), (canvases, 2 * tile // side), (decoded, tile // side))
    ):
        np.testing.assert_array_equal(cell(page, row, columns - 1, tile, origin), enlarged(group[15], factor))
    assert page.shape[0] == blocks * block - 2 * GUTTER
    assert page.shape[1] <= WIDTH


@pytest.mark.parametrize(("side", "canvas"), [(28, 28), (32, 32), (64, 32)])
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
