"""Uploads that are inverted, cropped and scaled by themselves."""

import numpy as np
import pytest

from npdraw_dist.data.placing import Target, place_picture
from tests.helpers.studio_models import png_of

BLACK, WHITE = Target((1, 28, 28), 0.0, 0.5), Target((1, 28, 28), 1.0, 0.5)


def drawing(paper: int, ink: int, colours: bool = False) -> bytes:
    """A bar of 60 x 20 pixels, its left top corner at (30, 10), on 100 x 200 pixels."""
    array = np.full((100, 200), paper, np.uint8)
    array[10:30, 30:90] = ink
    return png_of(np.stack([array] * 3, -1) if colours else array)


@pytest.mark.parametrize(("target", "inverted"), [(BLACK, True), (WHITE, False)])
def test_dark_ink_on_white_paper_is_made_what_the_model_draws(target: Target, inverted: bool) -> None:
    image, placed = place_picture(drawing(250, 5), target, "auto", True)
    assert placed.inverted == inverted
    assert placed.box == (0, -40, 120, 80)  # the bar takes half of it, in its middle
    assert placed.scale == pytest.approx(28 / 120)
    ink = (image[0, 0].int() - round(255 * target.background)).abs() > 128
    rows, columns = ink.any(1).nonzero()[:, 0], ink.any(0).nonzero()[:, 0]
    assert (int(columns[0]), int(columns[-1])) == (7, 20)
    assert 4 <= len(rows) <= 5
    assert abs(int(rows[0] + rows[-1]) - 27) <= 1
    assert ink[0].sum() == ink[-1].sum() == 0  # beyond the upload there is paper


@pytest.mark.parametrize(("choice", "inverted"), [("auto", False), ("yes", True), ("no", False)])
def test_a_choice_is_kept(choice: str, inverted: bool) -> None:
    image, placed = place_picture(drawing(0, 255), BLACK, choice, True)  # type: ignore[arg-type]
    assert placed.inverted == inverted
    assert (float(image.float().mean()) > 127) == inverted


def test_colours_are_not_inverted_by_themselves() -> None:
    target = Target((3, 28, 28), 0.0)
    assert not place_picture(drawing(255, 0, colours=True), target, "auto", True)[1].inverted
    assert place_picture(drawing(255, 0, colours=True), target, "yes", True)[1].inverted


def test_transparent_paper_is_judged_by_its_ink() -> None:
    clear = np.zeros((40, 40, 4), np.uint8)
    clear[15:25, 15:25, 3] = 255  # black ink
    image, placed = place_picture(png_of(clear), BLACK, "auto", True)
    assert placed.inverted
    assert int(image[0, 0, 14, 14]) == 255
    assert int(image[0, 0, 0, 0]) == 0
    assert not place_picture(png_of(clear), WHITE, "auto", True)[1].inverted


def test_without_plain_paper_or_ink_the_centre_square_is_taken() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 90), dtype=np.uint8)
    for array in (noise, np.full((50, 90), 7, np.uint8)):
        assert place_picture(png_of(array), BLACK, "no", True)[1].box == (20, 0, 70, 50)
    assert place_picture(drawing(0, 255), BLACK, "no", False)[1].box == (50, 0, 150, 100)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_pictures_of_a_line(shape: tuple[int, int]) -> None:
    array = np.zeros(shape, np.uint8)
    array[0, 0] = 255
    for crop in (True, False):
        assert place_picture(png_of(array), BLACK, "auto", crop)[0].shape == (1, 1, 28, 28)
