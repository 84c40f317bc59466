"""The pixels of the pictures of bank and parses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from npdraw_dist.core.pages import GUTTER, LINE, WIDTH
from npdraw_dist.core.parts import PartBank
from npdraw_dist.pipeline import pictures
from tests.helpers.pixels import cell, cells, enlarged, found, margin_of, random_images, reading_order, rgb


def test_a_grey_bank_keeps_its_order(tmp_path: Path) -> None:
    bank = PartBank(random_images(7, 1, 4, 4))
    pictures.save_bank(tmp_path / "bank.png", bank, [3, 999, 1_250, 47_000, 2_000_000, 0, 1])
    assert cells(rgb(tmp_path / "bank.png"), bank.parts, 13) == reading_order(7, 4)


def test_a_bank_in_colour_is_shown_by_colour(tmp_path: Path) -> None:
    """Index and number of patches are below each part; the bank stays as it is."""
    black, pale, dark_red, red = (0, 0, 0), (0.9, 0.9, 0.9), (0.5, 0, 0.02), (1, 0, 0.05)
    yellow, green, blue = (1, 1, 0), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9)
    sorted_by_colour = torch.tensor([black, pale, dark_red, red, yellow, green, blue])
    shuffle = torch.tensor([6, 1, 3, 5, 2, 0, 4])
    bank = PartBank(sorted_by_colour[shuffle][..., None, None].expand(-1, -1, 4, 4).contiguous())
    before = bank.parts.clone()
    pictures.save_bank(tmp_path / "bank.png", bank, list(range(7)))
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
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
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
    pictures.save_parse_preview(tmp_path / "preview.png", images, canvases)
    page = rgb(tmp_path / "preview.png")
    shown = cell(page, 2, 1, 112, (margin_of(page, 3, 112), 0))
    none, near, far = shown[0, 0], shown[24, 24], shown[100, 50]
    assert none.tolist() == [255, 255, 255]
    assert np.abs(near - none).max() > 40
    assert near.sum() > far.sum() + 150, "the larger the darker"
