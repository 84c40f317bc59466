"""Pictures of strangers: inverted, cropped and scaled by themselves, or refused before they cost anything."""

from typing import Any

import numpy as np
import pytest

from npdraw_dist.core.pictures import BadPicture, Frame
from npdraw_dist.serve.uploads import MAX_BYTES, place_picture
from tests.helpers.mixed_folder import bomb, turned
from tests.helpers.studio_models import png_of

BLACK, WHITE = (Frame((1, 28, 28), colour, "crop") for colour in ("black", "white"))
HALF = 0.5


def drawing(paper: int, ink: int, colours: bool = False) -> bytes:
    """A bar of 60 x 20 pixels, its left top corner at (30, 10), on 100 x 200 pixels."""
    array = np.full((100, 200), paper, np.uint8)
    array[10:30, 30:90] = ink
    return png_of(np.stack([array] * 3, -1) if colours else array)


@pytest.mark.parametrize(("target", "inverted"), [(BLACK, True), (WHITE, False)])
def test_dark_ink_on_white_paper_is_made_what_the_model_draws(target: Frame, inverted: bool) -> None:
    image, placed = place_picture(drawing(250, 5), target, "auto", HALF)
    assert placed.inverted == inverted
    assert placed.cropped == [0, -40, 120, 80]  # the bar takes half of it, in its middle
    assert placed.scaled == pytest.approx(28 / 120)
    ink = (image[0, 0].int() - 255 * (target.background == "white")).abs() > 128
    rows, columns = ink.any(1).nonzero()[:, 0], ink.any(0).nonzero()[:, 0]
    assert (int(columns[0]), int(columns[-1])) == (7, 20)
    assert 4 <= len(rows) <= 5
    assert abs(int(rows[0] + rows[-1]) - 27) <= 1
    assert ink[0].sum() == ink[-1].sum() == 0  # beyond the upload there is paper


@pytest.mark.parametrize(("choice", "inverted"), [("auto", False), ("yes", True), ("no", False)])
def test_a_choice_is_kept(choice: str, inverted: bool) -> None:
    image, placed = place_picture(drawing(0, 255), BLACK, choice, HALF)  # type: ignore[arg-type]
    assert placed.inverted == inverted
    assert (float(image.float().mean()) > 127) == inverted


def test_colours_are_not_inverted_by_themselves() -> None:
    target = Frame((3, 28, 28), "black", "crop")
    assert not place_picture(drawing(255, 0, colours=True), target, "auto", HALF)[1].inverted
    assert place_picture(drawing(255, 0, colours=True), target, "yes", HALF)[1].inverted


def test_transparent_paper_is_judged_by_its_ink() -> None:
    clear = np.zeros((40, 40, 4), np.uint8)
    clear[15:25, 15:25, 3] = 255  # black ink
    image, placed = place_picture(png_of(clear), BLACK, "auto", HALF)
    assert placed.inverted
    assert int(image[0, 0, 14, 14]) == 255
    assert int(image[0, 0, 0, 0]) == 0
    assert not place_picture(png_of(clear), WHITE, "auto", HALF)[1].inverted


def test_without_plain_paper_or_ink_the_centre_square_is_taken() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 90), dtype=np.uint8)
    for array in (noise, np.full((50, 90), 7, np.uint8)):
        assert place_picture(png_of(array), BLACK, "no", HALF)[1].cropped == [20, 0, 70, 50]
    assert place_picture(drawing(0, 255), BLACK, "no")[1].cropped == [50, 0, 150, 100]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_pictures_of_a_line(shape: tuple[int, int]) -> None:
    array = np.zeros(shape, np.uint8)
    array[0, 0] = 255
    for extent in (HALF, None):
        assert place_picture(png_of(array), BLACK, "auto", extent)[0].shape == (1, 1, 28, 28)


def read(
    content: bytes, shape: tuple[int, int, int] = (1, 28, 28), background: str = "black", invert: bool = False
) -> np.ndarray:
    """The centre square of a picture, (C, H, W)."""
    choice: Any = "yes" if invert else "no"
    return place_picture(content, Frame(shape, background, "crop"), choice)[0][0].numpy()


def test_a_picture_of_the_models_shape_is_left_as_it_is() -> None:
    random = np.random.default_rng(0)
    grey, colour = random.integers(0, 256, (28, 28), np.uint8), random.integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(read(png_of(grey))[0], grey)
    np.testing.assert_array_equal(read(png_of(grey), invert=True)[0], 255 - grey)
    np.testing.assert_array_equal(read(png_of(colour), (3, 32, 32)), colour.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_any_size_and_kind_comes_out_in_the_models_shape(kind: str, shape: tuple[int, int, int]) -> None:
    image = read(png_of(np.full((50, 90, 3), 200, np.uint8), kind), shape)
    assert image.shape == shape
    assert np.abs(image.astype(int) - 200).max() <= 3


def test_what_is_transparent_is_ground() -> None:
    clear = np.zeros((28, 28, 4), np.uint8)
    clear[:14] = 255
    image = read(png_of(clear))[0]
    assert (image[:14] == 255).all()
    assert (image[14:] == 0).all()
    assert (read(png_of(clear), invert=True) == 0).all()  # white ink on white
    clear[:14, :, :3] = 40
    image = read(png_of(clear), background="white")[0]
    assert (image[:14] == 40).all()
    assert (image[14:] == 255).all()
    image = read(png_of(clear), background="white", invert=True)[0]
    assert (image[:14] == 215).all()
    assert (image[14:] == 255).all()


def test_a_camera_held_sideways() -> None:
    """The scene of 30 x 12, its bright quarter at the right bottom, turned by a quarter."""
    placed = place_picture(turned(6), BLACK, "no")[1]
    assert placed.cropped == [0, 9, 12, 21]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"no picture at all", "none of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG, JPEG"),
        (png_of(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))[:-400], "unreadable image"),
        (bomb(4001, 4000), "4001 x 4000 pixels, more than the limit of 16,000,000"),
        (bomb(60_000, 60_000), "limit of 16,000,000 pixels"),
        (bomb(40, 40), "unreadable image"),
        (b"\0" * (MAX_BYTES + 1), "bytes"),
    ],
)
def test_what_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(BadPicture, match=says):
        read(content)
