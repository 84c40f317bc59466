"""Pictures of strangers: fitted to the model's shape, or refused with a reason before they cost anything."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from npdraw_dist.data.uploads import MAX_BYTES, NotAPicture, read_picture
from tests.helpers.studio_models import png_of

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_models_shape_is_left_as_it_is() -> None:
    grey, colour = noise(28, 28), noise(32, 32, 3)
    np.testing.assert_array_equal(read_picture(png_of(grey), GREY)[0, 0], grey)
    np.testing.assert_array_equal(read_picture(png_of(grey), GREY, invert=True)[0, 0], 255 - grey)
    np.testing.assert_array_equal(read_picture(png_of(colour), COLOUR)[0], colour.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_any_size_and_kind_comes_out_in_the_models_shape(kind: str, shape: tuple[int, int, int]) -> None:
    flat = np.full((50, 90, 3), 200, np.uint8)
    image = read_picture(png_of(flat, kind), shape)
    assert image.shape == (1, *shape)
    assert int((image.int() - 200).abs().max()) <= 3


def test_what_is_transparent_is_ground() -> None:
    clear = np.zeros((28, 28, 4), np.uint8)
    clear[:14] = 255
    image = read_picture(png_of(clear), GREY)[0, 0]
    assert (image[:14] == 255).all()
    assert (image[14:] == 0).all()
    assert (read_picture(png_of(clear), GREY, invert=True) == 0).all()  # white ink on white
    clear[:14, :, :3] = 40
    image = read_picture(png_of(clear), GREY, background=1.0)[0, 0]
    assert (image[:14] == 40).all()
    assert (image[14:] == 255).all()
    image = read_picture(png_of(clear), GREY, invert=True, background=1.0)[0, 0]
    assert (image[:14] == 215).all()
    assert (image[14:] == 255).all()


def test_a_camera_held_sideways() -> None:
    picture = Image.fromarray(
        np.concatenate([np.zeros((28, 14)), np.full((28, 14), 255)], 1).astype(np.uint8)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise: the right half comes below
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    image = read_picture(file.getvalue(), GREY)[0, 0]
    assert image[:14].max() == 0
    assert image[14:].min() == 255


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"no picture at all", "none of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of PNG, JPEG"),
        (png_of(noise(40, 40))[:-400], "no readable picture"),
        (bomb(4001, 4000), "4001 x 4000 pixels"),
        (bomb(60_000, 60_000), "pixels"),
        (bomb(40, 40), "no readable picture"),
        (b"\0" * (MAX_BYTES + 1), "bytes"),
        (png_of(noise(9, 9).astype(np.uint16)), "8 bits"),
    ],
)
def test_what_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(NotAPicture, match=says):
        read_picture(content, GREY)
