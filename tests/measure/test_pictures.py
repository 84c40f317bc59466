"""The pictures by their pixels: what was given is what is seen; the plots of a training, and its numbers."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist.core import pages
from npdraw_dist.core.images import png
from npdraw_dist.core.pages import GUTTER, WIDTH
from npdraw_dist.measure.curves import SURROGATE, Panel, axis_limits, save_curves
from npdraw_dist.measure.distances import Neighbours, save_neighbours
from npdraw_dist.measure.metrics import METRICS, format_metrics
from tests.helpers.pixels import cells, enlarged, found, random_images, reading_order, rgb


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 28, 4), (3, 64, 2)])
def test_sheet_shows_each_image_enlarged(channels: int, side: int, factor: int) -> None:
    images = random_images(5, channels, side, side)
    page = rgb(pages.sheet(images, 3, pages.TILE))
    assert cells(page, images, factor) == reading_order(5, 3)


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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels: int) -> None:
    image = random_images(channels, 9, 7)
    with Image.open(io.BytesIO(png(image))) as found:
        assert found.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(rgb(found), enlarged(image, 1))


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
