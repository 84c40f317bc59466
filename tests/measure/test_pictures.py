"""The pictures by their pixels: what was given is what is seen; the plots of a training, and its numbers."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.core import pages
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.images import png
from npdraw_dist.core.pages import GUTTER, LINE, OUTLINE, PAPER, WIDTH
from npdraw_dist.core.parts import PartBank
from npdraw_dist.measure.curves import SURROGATE, Panel, axis_limits, save_curves
from npdraw_dist.measure.distances import Neighbours
from npdraw_dist.measure.metrics import METRICS, format_metrics
from npdraw_dist.measure.posters import (
    CompletionRow,
    EditRow,
    covered,
    save_completions,
    save_edits,
    save_neighbours,
)
from tests.helpers.pixels import cell, cells, enlarged, found, margin_of, random_images, reading_order, rgb


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 28, 4), (3, 64, 2)])
def test_sheet_shows_each_image_enlarged(channels: int, side: int, factor: int) -> None:
    images = random_images(5, channels, side, side)
    page = rgb(pages.sheet(images, 3, pages.TILE))
    assert cells(page, images, factor) == reading_order(5, 3)


def test_a_grey_bank_keeps_its_order(tmp_path: Path) -> None:
    bank = PartBank(random_images(7, 1, 4, 4))
    pages.save_bank(tmp_path / "bank.png", bank, [3, 999, 1_250, 47_000, 2_000_000, 0, 1])
    assert cells(rgb(tmp_path / "bank.png"), bank.parts, 13) == reading_order(7, 4)


def test_a_bank_in_colour_is_shown_by_colour(tmp_path: Path) -> None:
    """Index and number of patches are below each part; the bank stays as it is."""
    black, pale, dark_red, red = (0, 0, 0), (0.9, 0.9, 0.9), (0.5, 0, 0.02), (1, 0, 0.05)
    yellow, green, blue = (1, 1, 0), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9)
    sorted_by_colour = torch.tensor([black, pale, dark_red, red, yellow, green, blue])
    shuffle = torch.tensor([6, 1, 3, 5, 2, 0, 4])
    bank = PartBank(sorted_by_colour[shuffle][..., None, None].expand(-1, -1, 4, 4).contiguous())
    before = bank.parts.clone()
    pages.save_bank(tmp_path / "bank.png", bank, list(range(7)))
    assert torch.equal(bank.parts, before)
    page = rgb(tmp_path / "bank.png")
    assert cells(page, bank.parts, 13) == [divmod(place, 4) for place in shuffle.tolist()]
    for part in bank.parts:
        top, left = found(page, enlarged(part, 13))
        for line in range(2):
            text = page[top + 52 + line * LINE : top + 52 + (line + 1) * LINE, left : left + 52]
            assert text.min() < 150, "no index, or no number of patches"


def test_parse_preview_has_image_and_canvas_below(tmp_path: Path) -> None:
    canvases = random_images(20, 3, 32, 32)
    images = torch.nn.functional.interpolate(1 - canvases, scale_factor=2.0)
    pages.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    assert page.shape[1] <= WIDTH
    assert cells(page, images[:16], 2) == cells(page, canvases[:16], 4) == reading_order(16, 8)
    tops = [found(page, enlarged(image, factor))[0] for image, factor in ((images[0], 2), (canvases[0], 4))]
    assert tops[1] == tops[0] + 128 + GUTTER


@pytest.mark.parametrize(("value", "small"), [(0.0, 0.05), (0.5, -0.05), (1.0, -0.05)])
def test_a_small_difference_is_seen_on_any_background(tmp_path: Path, value: float, small: float) -> None:
    canvases = torch.full((3, 1, 28, 28), value)
    images = canvases.clone()
    images[:, :, 5:9, 5:9] += small
    images[:, :, 20:, :] = 1 - value if value != 0.5 else 0.9  # and large ones elsewhere
    pages.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    shown = cell(page, 2, 1, 112, (margin_of(page, 3, 112), 0))
    none, near, far = shown[0, 0], shown[24, 24], shown[100, 50]
    assert none.tolist() == [255, 255, 255]
    assert np.abs(near - none).max() > 40
    assert near.sum() > far.sum() + 150, "the larger the darker"


def test_samples_are_pairs_of_one_size_on_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, canvases = random_images(14, 3, 64, 64), random_images(14, 3, 32, 32)
    pages.save_samples(tmp_path / "samples.png", images, canvases)
    page = rgb(tmp_path / "samples.png")
    assert page.shape[1] <= 1700
    order = cells(page, images, 2)
    columns = 1 + max(column for _, column in order)
    assert cells(page, canvases, 4) == order == reading_order(14, columns)
    assert columns > 1
    top, left = found(page, enlarged(canvases[5], 4))
    assert found(page, enlarged(images[5], 2)) == (top, left + 128 + 1)
    pages.save_samples(tmp_path / "images.png", images[:5], None)
    assert cells(rgb(tmp_path / "images.png"), images[:5], 2) == reading_order(5, 3)
    monkeypatch.setattr(pages, "MOST", 5)
    pages.save_samples(tmp_path / "first.png", images, None)
    np.testing.assert_array_equal(rgb(tmp_path / "first.png"), rgb(tmp_path / "images.png"))


def test_neighbours_are_below_their_samples(tmp_path: Path) -> None:
    samples = random_images(16, 3, 28, 28)
    nearest, chosen = ((255 * samples.flip(axis)).round().byte() for axis in (2, 3))
    found_ones = Neighbours(nearest, torch.rand(16), chosen, 12_345)
    save_neighbours(tmp_path / "neighbours.png", samples, found_ones)
    page = rgb(tmp_path / "neighbours.png")
    assert page.shape[1] <= WIDTH
    groups = torch.cat([samples, nearest / 255, chosen / 255])
    assert cells(page, groups, 3) == reading_order(48, 16)


@pytest.mark.parametrize("order", [("image", "canvas", "half"), ("canvas", "image", "half")])
def test_rows_that_are_wider_than_a_page_are_cut_into_blocks(order: tuple[str, ...], tmp_path: Path) -> None:
    images = random_images(16, 3, 64, 64)
    every = {"image": images, "canvas": images[..., ::2, ::2].contiguous(), "half": images / 2}
    rows = {name: every[name] for name in order}
    (tmp_path / "page.png").write_bytes(pages.rows_png(rows))
    page = rgb(tmp_path / "page.png")
    assert page.shape[1] <= WIDTH
    shown = [cells(page, group, 128 // group.shape[-1]) for group in rows.values()]
    columns = 1 + max(column for _, column in shown[0])
    assert 1 < columns < 16
    assert shown == [reading_order(16, columns)] * 3
    tops = [found(page, enlarged(group[15], 128 // group.shape[-1]))[0] for group in rows.values()]
    assert tops == [tops[0], tops[0] + 128 + GUTTER, tops[0] + 2 * (128 + GUTTER)]


@pytest.mark.parametrize(("side", "canvas"), [(28, 28), (64, 32)])
def test_an_edit_frames_its_region_on_each_canvas(tmp_path: Path, side: int, canvas: int) -> None:
    grid = Grid(canvas, canvas, 5, 5)
    images, canvases = random_images(3, 1, side, side) * 0.5, random_images(3, 1, canvas, canvas) * 0.5
    region = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    region[1:3, 2:] = True
    for chosen in (region.view(-1), torch.zeros(grid.places, dtype=torch.bool)):
        pages.save_edit(tmp_path / "edit.png", canvases, images, ["A", "B", "both"], chosen, grid)
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
    with Image.open(io.BytesIO(png(image))) as found:
        assert found.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(rgb(found), enlarged(image, 1))
    bank = PartBank(random_images(5, channels, 3, 3))
    with Image.open(io.BytesIO(pages.bank_sheet(bank, 2))) as found:
        sheet = rgb(found)
    assert sheet.shape == (9, 6, 3)
    np.testing.assert_array_equal(sheet[3:6, 3:6], enlarged(bank.parts[3], 1))
    assert (sheet[6:, 3:] == 0).all()


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


# The plots of a training
NAN = float("nan")


def lines(values: list[float]) -> tuple[list[float], list[float]]:
    return [1e4 * (i + 1) for i in range(len(values))], values


def test_curves_are_a_picture_with_a_panel_each(tmp_path: Path) -> None:
    values = lines([-9000.0, -800.0, *[-95.0 + 0.1 * i for i in range(18)]])
    panels = [Panel("ELBO", {"a": values}, dimensions=3072), Panel("KL", {SURROGATE: values})]
    save_curves(tmp_path / "curves.png", panels)
    save_curves(tmp_path / "none.png", [])
    page = rgb(tmp_path / "curves.png")
    for panel in (page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]):
        blue = np.abs(panel - np.array([31, 119, 180])).max(-1) < 30
        assert np.ptp(np.nonzero(blue)[0]) > len(page) / 4, "the start squashes the rest"
    assert rgb(tmp_path / "none.png").size > 0


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], 1.0, 5.0),  # the start squashes nothing
        ([1000.0, 2.0], 2.0, 1000.0),  # too few points to leave one out
        ([100.0, 1.0, NAN, NAN, NAN, NAN], 1.0, 100.0),
        ([1.0, 1.0, 1.0, 1.0, 50.0, 1.0], 1.0, 50.0),  # what comes late is never cut off
        ([2.0, 2.0, 2.0], 2.0, 2.0),
    ],
)
def test_limits_hold_all_other_points(values: list[float], low: float, high: float) -> None:
    lowest, highest, note = axis_limits([lines(values)])
    assert note == ""
    assert lowest is not None
    assert highest is not None
    assert lowest < low <= high < highest
    assert highest - lowest <= 1.2 * max(high - low, 1)


def test_limits_are_of_all_lines() -> None:
    many, short = lines([-900.0, *[-100.0 + i for i in range(10)]]), ([5e4, 10e4], [-70.0, -60.0])
    low, high, _ = axis_limits([many, short])
    assert (low, high) == (pytest.approx(-100, abs=3), pytest.approx(-55, abs=5))
    assert axis_limits([lines([NAN])]) == (None, None, "")


def test_numbers_have_their_decimals_and_their_standard_error() -> None:
    bounds = {"elbo": -2.0, "nll_iwae": 1234.567, "nll_iwae_se": 0.4, "unlisted": 3.0}
    assert format_metrics(bounds) == "NLL 1,234.57 ± 0.40 nats, ELBO -2.00 nats"  # in the table's order
    with_prefix = {f"test/{name}": value for name, value in bounds.items()}
    assert format_metrics(with_prefix, "elbo", prefix="test/") == "ELBO -2.00 nats"
    assert METRICS["elbo"].format(None) == ""
