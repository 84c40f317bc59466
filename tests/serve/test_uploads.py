"""Uploads are inverted, cropped and scaled, or refused before they are decoded."""

import numpy as np
import pytest

from npdraw_dist.core.pictures import BadPicture, Frame
from npdraw_dist.serve.uploads import MAX_BYTES, place_picture
from tests.helpers.mixed_folder import bomb, turned
from tests.helpers.studio_models import png_of

BLACK, WHITE = (Frame((1, 28, 28), colour, "crop") for colour in ("black", "white"))
COLOUR = Frame((3, 28, 28), "black", "crop")
HALF = 0.5


def drawing(paper: int, ink: int, colours: bool = False) -> bytes:
    """A bar of 60 x 20 pixels at column 30 and row 10 of 200 x 100 pixels."""
    array = np.full((100, 200), paper, np.uint8)
    array[10:30, 30:90] = ink
    return png_of(np.stack([array] * 3, -1) if colours else array)


@pytest.mark.parametrize("target", [BLACK, WHITE])
def test_dark_ink_on_white_paper_is_made_what_the_model_draws(target: Frame) -> None:
    image, placed = place_picture(drawing(250, 5), target, "auto", HALF)
    assert placed.inverted == (target is BLACK)
    assert placed.cropped == [0, -40, 120, 80]  # the bar takes half of it, in its middle
    assert placed.scaled == pytest.approx(28 / 120)
    ink = (image[0, 0].int() - 255 * (target is WHITE)).abs() > 128
    rows, columns = ink.any(1).nonzero()[:, 0], ink.any(0).nonzero()[:, 0]
    assert (int(columns[0]), int(columns[-1])) == (7, 20)
    assert 4 <= len(rows) <= 5
    assert abs(int(rows[0] + rows[-1]) - 27) <= 1
    assert ink[0].sum() == ink[-1].sum() == 0  # beyond the upload there is paper


def test_what_is_inverted() -> None:
    for choice, inverted in (("auto", False), ("yes", True), ("no", False)):
        image, placed = place_picture(drawing(0, 255), BLACK, choice, HALF)  # type: ignore[arg-type]
        assert placed.inverted == inverted
        assert (float(image.float().mean()) > 127) == inverted
    coloured = drawing(255, 0, colours=True)  # never by themselves
    assert not place_picture(coloured, COLOUR, "auto", HALF)[1].inverted
    assert place_picture(coloured, COLOUR, "yes", HALF)[1].inverted


def test_what_is_transparent_is_ground_also_if_it_is_inverted() -> None:
    clear = np.zeros((40, 40, 4), np.uint8)
    clear[15:25, 15:25, 3] = 255  # transparent paper is judged by its black ink
    image, placed = place_picture(png_of(clear), BLACK, "auto", HALF)
    assert placed.inverted
    assert (int(image[0, 0, 14, 14]), int(image[0, 0, 0, 0])) == (255, 0)
    assert not place_picture(png_of(clear), WHITE, "auto", HALF)[1].inverted
    clear = np.full((28, 28, 4), 40, np.uint8)
    clear[..., 3] = 255 * (np.arange(28) < 14)[:, None]
    for target, ground in ((BLACK, 0), (WHITE, 255)):
        for choice, ink in (("no", 40), ("yes", 215)):
            image = place_picture(png_of(clear), target, choice)[0][0, 0]  # type: ignore[arg-type]
            assert (image[:14] == ink).all()
            assert (image[14:] == ground).all()


def test_without_plain_paper_or_ink_the_centre_square_is_taken() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 90), dtype=np.uint8)
    for array in (noise, np.full((50, 90), 7, np.uint8)):
        assert place_picture(png_of(array), BLACK, "no", HALF)[1].cropped == [20, 0, 70, 50]
    assert place_picture(drawing(0, 255), BLACK, "no")[1].cropped == [50, 0, 150, 100]
    for shape in ((1, 1), (1, 300), (300, 1)):
        line = png_of(np.eye(*shape, dtype=np.uint8) * 255)
        assert place_picture(line, BLACK, "auto", HALF)[0].shape == (1, 1, 28, 28)
    sideways = turned(6)  # of 30 x 12 pixels, turned by a quarter
    assert place_picture(sideways, BLACK, "no")[1].cropped == [0, 9, 12, 21]


def test_what_is_cut_out_has_the_shape_of_the_images() -> None:
    wide = Frame((1, 14, 28), "black", "crop")
    assert place_picture(drawing(0, 255), wide, "no")[1].cropped == [0, 0, 200, 100]
    image, placed = place_picture(drawing(0, 255), wide, "no", HALF)
    assert placed.cropped == [0, -10, 120, 50]
    ink = image[0, 0] > 128
    assert (int(ink.any(0).sum()), int(ink.any(1).sum())) == (14, 5)  # 60 x 20 pixels, still 3 : 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_any_size_and_kind_comes_out_in_the_models_shape(kind: str) -> None:
    for target in (BLACK, COLOUR):
        image = place_picture(png_of(np.full((50, 90, 3), 200, np.uint8), kind), target, "no")[0]
        assert image.shape == (1, *target.shape)
        assert (image.int() - 200).abs().max() <= 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG, JPEG"),
        (drawing(0, 255)[:-30], "unreadable image"),
        (bomb(4001, 4000), "4001 x 4000 pixels, more than the limit"),
        (bomb(60_000, 60_000), "limit of 16,000,000 pixels"),
        (b"\0" * (MAX_BYTES + 1), "bytes"),
    ],
)
def test_what_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(BadPicture, match=says):
        place_picture(content, BLACK, "no")
