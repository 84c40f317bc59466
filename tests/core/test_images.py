"""Images of any kind as one batch, and back."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npdraw_dist.core.images import inline, to_batch, to_pil
from npdraw_dist.core.parts import PartBank
from npdraw_dist.system.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (2, 5, 6), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (2, 3, 5, 6), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[:, None], GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        ((torch.tensor(GREY[0]), Image.fromarray(GREY[1])), GREY[:, None]),
        ([Image.fromarray(image).convert("RGB") for image in GREY], GREY[:, None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
        ([Image.fromarray(COLOUR[0].transpose(1, 2, 0)), COLOUR[1]], COLOUR),
        (GREY[0], GREY[:1, None]),
        (GREY[0][..., None], GREY[:1, None]),
        (Image.fromarray(GREY[0]), GREY[:1, None]),
    ],
)
def test_pictures_of_any_kind_are_a_batch(images: Any, expected: Any) -> None:
    batch = to_batch(images, expected.shape[1:])
    assert batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch.numpy(), expected)


def test_floats_are_taken_as_they_are() -> None:
    x = torch.rand(2, 1, 5, 6, dtype=torch.float64)
    assert torch.equal(to_batch(x, (1, 5, 6)), x)
    assert torch.equal(to_batch(x.numpy(), (1, 5, 6)), x)
    ink = GREY > 99
    assert to_batch(ink, (1, 5, 6)).unique().tolist() == [0, 255]


def test_what_is_transparent_becomes_background() -> None:
    glass = np.zeros((5, 6, 4), np.uint8)
    glass[:, 3:] = (9, 9, 9, 255)
    for background, expected in ((0.0, 0), (1.0, 255)):
        batch = to_batch(Image.fromarray(glass), (1, 5, 6), background)
        assert batch[0, 0, 0].tolist() == [expected] * 3 + [9] * 3


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.rand(2, 1, 5, 6) * 255, r"floats outside \[0, 1\]"),
        (np.full((5, 6), np.nan), "NaN or infinite"),
        (GREY.astype(np.int64), "int64"),
        (torch.rand(2, 1, 6, 5), r"images must be \(B, 1, 5, 6\), not \(2, 1, 6, 5\)"),
        (Image.new("L", (28, 28)), "28x28 pixels, .* draws 6x5"),
        ("picture.png", "not str"),
        (7, "not int"),
        ([], "there is no image"),
        ([GREY[0], GREY[1] / 255], "all pictures .* or all floats"),
    ],
)
def test_what_is_no_image_of_the_model_is_named(images: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        to_batch(images, (1, 5, 6))


def test_back_to_pil() -> None:
    for images in (GREY[:, None], COLOUR):
        shape = images.shape[1:]
        assert np.array_equal(to_batch(to_pil(torch.tensor(images)), shape).numpy(), images)
        assert np.array_equal(to_batch(to_pil(torch.tensor(images) / 255), shape).numpy(), images)
    assert [picture.mode for picture in to_pil(torch.rand(1, 4, 4))] == ["L"]
    with pytest.raises(UserError, match=r"\(B, 1 or 3, H, W\), not \(2, 4, 5, 6\)"):
        to_pil(torch.rand(2, 4, 5, 6))


def opened(html: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1].split('"')[0])))


def test_html_holds_the_pixels() -> None:
    html = inline(torch.tensor(COLOUR[0]) / 255, least=50, title="a picture")
    np.testing.assert_array_equal(np.asarray(opened(html)), COLOUR[0].transpose(1, 2, 0))


def test_a_bank_shows_its_parts() -> None:
    bank = PartBank(torch.rand(8, 3, 2, 2))
    pixels = np.asarray(opened(bank._repr_html_()))
    assert pixels.shape == (6, 12, 3)
    last = (bank.parts[7] * 255).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels[3:5, 9:11], last)
    sheet = Image.open(io.BytesIO(bank._repr_png_()))
    np.testing.assert_array_equal(np.asarray(sheet.resize((12, 6), 0)), pixels)
