"""The reader of pictures gives the same image as NumPy for every mode, size and turn, or a reason."""

import io
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from npdraw_dist.core.pictures import (
    BadPicture,
    Frame,
    from_array,
    open_picture,
    read_picture,
    to_image,
    upright,
    upright_size,
)
from tests.helpers import mixed_folder as folder

COLOUR, GREY = Frame((3, 16, 16)), Frame((1, 16, 16))


def padded(shown: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """(h, w, 3) -> (side, side, 3): the means of the cells of a white square with `shown` in its middle."""
    height, width, _ = shown.shape
    square = np.full((max(height, width), max(height, width), 3), 255.0)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top : top + height, left : left + width] = shown
    fine = np.repeat(np.repeat(square, side, 0), side, 1) if len(square) < 100 else square
    edges = np.linspace(0, len(fine), side + 1).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(fine, edges[:-1], 0), edges[:-1], 1)
    return sums / (np.diff(edges)[:, None] * np.diff(edges))[..., None]


def luma(shown: NDArray[np.float64]) -> NDArray[np.float64]:
    return shown @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("mode", folder.MODES)
def test_every_mode_of_the_images_size_is_exact(mode: str) -> None:
    _, shown = folder.picture(mode, 16, 16)
    content, tolerance = folder.encoded(mode, 16, 16), folder.TOLERANCE.get(mode, 0)
    image = read_picture(content, COLOUR)
    assert (image.shape, image.dtype) == ((3, 16, 16), np.uint8)
    assert np.abs(image.transpose(1, 2, 0) - shown).max() <= tolerance
    assert np.abs(read_picture(content, GREY)[0] - luma(shown)).max() <= tolerance + 1


@pytest.mark.parametrize("mode", folder.MODES)
@pytest.mark.parametrize(("size", "box"), [("wide", np.s_[6:10, [1, 14]]), ("large", np.s_[[2, 13], 4:12])])
def test_every_mode_of_other_sizes_is_padded(mode: str, size: str, box: Any) -> None:
    width, height = folder.SIZES[size]
    expected = padded(folder.picture(mode, width, height)[1], 16)
    image = read_picture(folder.encoded(mode, width, height), COLOUR).transpose(1, 2, 0)
    # Pillow's filter reaches into the neighbours of a cell: the means are near, edges are softer.
    assert np.abs(image - expected).mean() < 10
    assert np.abs(image[box] - expected[box]).mean() < 16


@pytest.mark.parametrize(
    ("orientation", "kind"), [*((turn, "JPEG") for turn in range(1, 9)), (6, "PNG"), (6, "TIFF"), (6, "WEBP")]
)
def test_a_turned_picture_is_upright(orientation: int, kind: str) -> None:
    pixels = folder.scene(30, 12)[0]
    turned = pixels if orientation < 5 else pixels.transpose(1, 0, 2)
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(
        orientation, (1, 1)
    )
    upright = turned[::rows, ::columns]
    height, width, _ = upright.shape
    image = read_picture(folder.turned(orientation, kind), Frame((3, 60, 60), fit="crop"))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = upright[top : top + side, left : left + side]
    found = image.transpose(1, 2, 0)[2::5, 2::5]  # the middle of each enlarged pixel
    assert np.abs(found.astype(int) - square).mean() < 25
    others = [np.rot90(square, k) for k in range(4)] + [np.rot90(square[::-1], k) for k in range(4)]
    errors = [np.abs(found.astype(int) - other).mean() for other in others]
    assert min(errors) == np.abs(found.astype(int) - square).mean()


def test_the_background_is_behind_what_is_transparent_or_missing() -> None:
    content = folder.encoded("RGBA", 32, 16)
    image = read_picture(content, Frame((3, 32, 32), "#ffcc00"))
    assert image[:, 0, 0].tolist() == image[:, 16, 13].tolist() == [255, 204, 0]
    cropped = read_picture(content, Frame((3, 16, 16), "black", "crop"))
    pixels, clear = folder.scene(32, 16)
    pixels[clear] = 0
    np.testing.assert_array_equal(cropped, pixels[:, 8:24].transpose(2, 0, 1))
    grey = read_picture(content, Frame((1, 32, 32), "black"))
    assert (grey[0, 0] == 0).all()


def test_a_crop_has_a_largest_side() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    image = to_image(Image.fromarray(pixels), Frame((3, 16, 16), fit="crop", most=16))
    np.testing.assert_array_equal(image, pixels[17:33, 12:28].transpose(2, 0, 1))


def test_an_image_may_be_wider_than_high() -> None:
    """With the shape of the picture nothing is added; other pictures get bars, or lose their edges."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for shape in ((3, 24, 32), (3, 12, 16)):
        image = to_image(Image.fromarray(pixels), Frame(shape))
        expected = np.asarray(Image.fromarray(pixels).resize(shape[:0:-1], Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    high = to_image(Image.fromarray(pixels[:, :9]), Frame((3, 24, 32), "white"))
    np.testing.assert_array_equal(high[:, :, 11:20], pixels[:, :9].transpose(2, 0, 1))
    assert (high[:, :, :11] == 255).all()
    assert (high[:, :, 20:] == 255).all()
    cut = to_image(Image.fromarray(pixels), Frame((3, 12, 32), fit="crop"))
    np.testing.assert_array_equal(cut, pixels[6:18].transpose(2, 0, 1))


def test_the_header_tells_the_size_of_a_turned_photograph(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        (tmp_path / "a.jpg").write_bytes(folder.turned(orientation, "JPEG"))
        with open_picture(tmp_path / "a.jpg") as opened:
            assert upright_size(opened) == upright(opened).size


@pytest.mark.parametrize("name", folder.BAD)
def test_what_is_no_picture_has_a_reason(name: str) -> None:
    with warnings.catch_warnings(record=True) as shown, pytest.raises(BadPicture) as refused:
        read_picture(folder.bad_contents()[name], COLOUR)
    assert ("limit of 100,000,000" if "bomb" in name else "unreadable image") in str(refused.value)
    assert "0x" not in str(refused.value)
    assert shown == []


def test_the_limit_is_looked_at_before_anything_is_decoded() -> None:
    tracemalloc.start()
    with pytest.raises(BadPicture, match="10001 x 10000 pixels"):
        read_picture(folder.bomb(10_001, 10_000), COLOUR)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_warnings_of_pillow_stay_off_the_screen_and_others_do_not() -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"x" * 30)
    bad_exif = file.getvalue()
    large = folder.bomb(9_500, 9_500)  # Pillow warns of it
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(BadPicture):
            read_picture(large, COLOUR)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: read_picture(bad_exif, COLOUR), range(40)))
        warnings.warn("mine", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["mine"]


def test_a_photograph_is_shrunk_while_it_is_decoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photograph.save(file, "JPEG", quality=90)
    exact = np.asarray(ImageOps.pad(photograph, (64, 64), Image.Resampling.BOX, "white")).transpose(2, 0, 1)
    image = read_picture(file.getvalue(), Frame((3, 64, 64)))
    assert np.abs(image.astype(int) - exact).mean() < 12


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 1)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_line_is_a_picture_too(size: tuple[int, int], fit: Any) -> None:
    image = to_image(Image.new("L", size), Frame((3, 16, 16), fit=fit))
    assert image.shape == (3, 16, 16)
    assert image.mean() < 1 or fit == "pad"


def test_arrays_of_all_layouts_are_pictures() -> None:
    pixels = folder.scene(16, 16)[0]
    expected = pixels.transpose(2, 0, 1)
    for values in (pixels, expected, pixels / 255, expected.astype(np.float32) / 255):
        np.testing.assert_array_equal(from_array(values, COLOUR), expected)
    np.testing.assert_array_equal(from_array(pixels[..., 0], COLOUR), np.stack([pixels[..., 0]] * 3))
    clear = np.dstack([pixels, np.full((16, 16), 0, np.uint8)])
    assert (from_array(clear, COLOUR) == 255).all()
    for wrong in (np.zeros((2, 8, 8), np.uint8), np.zeros((0, 8), np.uint8), pixels.astype(int), -pixels / 9):
        with pytest.raises(BadPicture):
            from_array(wrong, COLOUR)


@pytest.mark.parametrize("value", [-1.0, np.nan, 300.0])
def test_floats_that_are_no_shades_are_refused(value: float) -> None:
    with pytest.raises(BadPicture, match="values from"):
        to_image(Image.fromarray(np.full((9, 9), value, np.float32)), GREY)
