"""What people do with a trained model: images of any kind and drawings in, images and drawings out."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from npdraw_dist.core import editing
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import to_pil
from npdraw_dist.nn.npdraw import Drawings, NPDraw
from tests.helpers.tiny_baselines import tiny_baseline
from tests.helpers.tiny_models import random_drawings, tiny_model, tiny_spec

GREY: dict[str, Any] = {"image_shape": (1, 7, 8), "patch": 3, "stride": 3, "parts": 4, "steps": 9}
COLOUR: dict[str, Any] = {
    **{"image_shape": (3, 8, 8), "downscale": 2, "parts": 4, "steps": 4, "latents": 3},
    **{"likelihood": "logistic_mixture", "binarize": "none", "background": "white"},
}
SIZES = [pytest.param(GREY, id="grey"), pytest.param(COLOUR, id="colour")]
FLAT: dict[str, Any] = {
    **{"image_shape": (1, 28, 28), "patch": 7, "stride": 7, "parts": 4, "steps": 16},
    **{"heads": "independent", "network": "authors"},
}


def model_of(size: dict[str, Any]) -> NPDraw:
    return tiny_model(tiny_spec(**size))


def pictures(model: NPDraw, n: int) -> Tensor:
    """uint8 (n, C, H, W)."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, *model.spec.image_shape), generator=g, dtype=torch.uint8)


def kinds(images: Tensor) -> list[Any]:
    """The same uint8 images (B, C, H, W) as other things."""
    last = images.permute(0, 2, 3, 1).numpy()
    pils = [Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in last]
    return [images, images.numpy(), last, list(images), list(last), pils]


@pytest.mark.parametrize("size", SIZES)
def test_all_kinds_of_pictures_give_the_same(size: dict[str, Any]) -> None:
    model = model_of(size)
    images = pictures(model, 3)
    x = (images > 127).float() if model.spec.binarize != "none" else images / 255
    expected, z = model.reconstruct(x), model.encode(x)
    for kind in kinds(images):
        assert torch.equal(model.as_input(kind), x)
        assert torch.equal(model.reconstruct(kind), expected)
        assert torch.equal(model.encode(kind).what, z.what)
    torch.testing.assert_close(model.reconstruct(kinds(images)[-1][0]), expected[:1])
    seeded = [model.log_weights(kind, 2, torch.Generator().manual_seed(0)) for kind in (x, images)]
    assert torch.equal(*seeded)


def test_floats_of_a_binary_model_are_taken_as_they_are() -> None:
    model = model_of(GREY)
    x = torch.rand(2, 1, 7, 8)
    assert torch.equal(model.as_input(x), x)
    assert torch.equal(model.as_input(x.double().numpy()), x)  # of the model's precision


@pytest.mark.parametrize("method", ["encode", "reconstruct", "drawings", "features", "log_weights"])
@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.full((2, 1, 7, 8), 200.0), r"floats outside \[0, 1\], 200 to 200"),
        (torch.zeros(2, 1, 7, 8, dtype=torch.int64), "values of type int64"),
        (torch.zeros(2, 1, 8, 8), r"images are \(B, 1, 7, 8\), not \(2, 1, 8, 8\)"),
        (Image.new("L", (28, 28)), "28x28 pixels, and the model draws 8x7"),
        (["a"], "not str"),
    ],
)
def test_wrong_range_type_and_size_are_named(method: str, images: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        getattr(model_of(GREY), method)(images)


def test_a_tensor_to_encode_is_a_batch() -> None:
    with pytest.raises(UserError, match=r"not \(1, 7, 8\); of one image give image\[None\]"):
        model_of(GREY).encode(torch.rand(1, 7, 8))


@pytest.mark.parametrize("size", SIZES)
def test_drawings_of_images_and_of_sequences(size: dict[str, Any]) -> None:
    model = model_of(size)
    x = model.as_input(pictures(model, 3))
    drawn = model.drawings(x)
    assert len(drawn) == 3
    assert torch.equal(drawn.images, model.reconstruct(x))
    assert torch.equal(drawn.canvas, model.render(model.encode(x)))
    assert (drawn.u is None) == (model.appearance is None)
    alone = model.drawings(drawn.z)
    assert torch.equal(alone.images, model.decode(drawn.canvas))
    assert model.drawings(drawn) is drawn
    with pytest.raises(ValueError, match="a drawing has"):
        model.drawings(random_drawings(tiny_spec(), 2))
    one = drawn[-1]
    assert torch.equal(one.images, drawn.images[2:])
    assert len(drawn[1:]) == 2
    assert np.array_equal(drawn.numpy(), drawn.images.numpy())
    assert [picture.size for picture in drawn.to_pil()] == [x.shape[:1:-1]] * 3
    with pytest.raises(IndexError, match="drawing 3; there are 3"):
        drawn[3]
    html = drawn._repr_html_()
    assert html.count("<img ") == 6
    assert f"{int(drawn.z.whether[0].sum())} parts" in html
    height, width = x.shape[-2:]
    sheet = Image.open(io.BytesIO(drawn._repr_png_()))
    assert sheet.size == (2 * 3 * (width + 2), 2 * (2 * height + 5))
    (canvas,) = to_pil(drawn.canvas[0])
    shown = sheet.crop((2, 2, 2 + 2 * width, 2 + 2 * height)).resize(canvas.size, 0)
    assert np.array_equal(np.asarray(shown), np.asarray(canvas))


@pytest.mark.parametrize("size", SIZES)
def test_completions_of_images_keep_their_parts(size: dict[str, Any]) -> None:
    model = model_of(size)
    images, grid = pictures(model, 2), model.grid
    mask = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    mask[0] = True
    before = model.drawings(images)
    done = model.complete(images, keep="0:1,:", seed=3)
    assert isinstance(done, Drawings)
    z = model.complete(before.z, mask.view(-1), torch.Generator().manual_seed(3))
    assert torch.equal(done.z.what, z.what)
    assert torch.equal(model.complete(images, keep=mask.numpy(), seed=3).images, done.images)
    kept = mask.view(-1)
    held = before.z.whether[:, kept]
    assert torch.equal(done.z.whether[:, kept], held)
    assert torch.equal(done.z.what[:, kept][held], before.z.what[:, kept][held])
    everything = model.complete(images, keep=":,:", seed=0)
    torch.testing.assert_close(everything.images, before.images)
    with pytest.raises(UserError, match="keep is bool"):
        model.complete(images, torch.ones(5, dtype=torch.bool))
    with pytest.raises(UserError, match="a generator or a seed"):
        model.complete(before.z, kept, torch.Generator(), seed=1)


@pytest.mark.parametrize("size", SIZES)
def test_compositions_have_the_parts_of_both(size: dict[str, Any]) -> None:
    model = model_of(size)
    images = pictures(model, 4)
    a, b = images[:2], images[2:]
    z_a, z_b = model.encode(a), model.encode(b)
    mask = torch.zeros(model.grid.places, dtype=torch.bool)
    mask[1] = True
    made = model.compose(a, b, [1])
    z = editing.compose(z_a, z_b, mask, model.spec.order)
    assert torch.equal(made.z.what, z.what)
    assert torch.equal(made.canvas, model.render(z))
    torch.testing.assert_close(model.compose(a, b, []).images, model.reconstruct(a))
    torch.testing.assert_close(model.compose(a, b, ":,:").canvas, model.render(z_b))
    shared = model.compose(a, b[:1], [1])
    assert torch.equal(shared.z.what[1, 1], z_b.what[0, 1])
    assert len(shared) == 2
    with pytest.raises(ValueError, match=r"A has 2 drawings .* B has 3"):
        model.compose(a, images[:3], [1])


def test_edits_in_their_order() -> None:
    model = model_of(GREY)
    z = model.encode(pictures(model, 2))
    done = model.edit(z, remove=[0], move={1: (0, 0)}, swap={2: 3}, put={(2, 2): 3})
    expected = editing.remove(z, torch.arange(9) == 0, "aligned")
    expected = editing.swap(editing.move(expected, 1, 0, "aligned"), 2, 3, "aligned")
    expected = editing.put(expected, 8, 3, "aligned")
    assert torch.equal(done.z.whether, expected.whether)
    assert torch.equal(done.z.what, expected.what)
    assert torch.equal(done.images, model.decode(model.render(expected)))
    with pytest.raises(UserError, match="part 4; the bank has 0 to 3"):
        model.edit(z, put={0: 4})
    with pytest.raises(UserError, match="place 9"):
        model.edit(z, move={0: 9})


def test_an_edit_keeps_what_parts_cannot_say() -> None:
    model = model_of(COLOUR)
    images = pictures(model, 2)
    unchanged = model.edit(images)
    torch.testing.assert_close(unchanged.images, model.reconstruct(images))
    assert not torch.allclose(unchanged.images, model.decode(unchanged.canvas))


def test_seeds_in_place_of_generators() -> None:
    for model in (model_of(GREY), tiny_baseline("vae")):
        seeded = model.sample(3, seed=5)
        assert torch.equal(seeded, model.sample(3, torch.Generator().manual_seed(5)))
        assert not torch.equal(seeded, model.sample(3, seed=6))
        with pytest.raises(UserError, match="a generator or a seed"):
            model.sample(3, torch.Generator(), seed=5)
    drawn = model_of(GREY).sample_prior(3, seed=5)
    assert torch.equal(drawn.what, model_of(GREY).sample_prior(3, torch.Generator().manual_seed(5)).what)


def test_features_are_those_of_the_encoder() -> None:
    grey, flat = model_of(GREY), model_of(FLAT)
    x = pictures(grey, 2)
    features = grey.features(x)
    assert features.shape == (2, 16 * 9)
    assert not torch.equal(features[0], features[1])
    changed = x.clone()
    changed[1] = 255 - changed[1]
    assert torch.equal(grey.features(changed)[0], features[0])
    assert flat.features(pictures(flat, 2)).shape == (2, 16)
    vae, draw = tiny_baseline("vae"), tiny_baseline("draw")
    images = torch.zeros(2, 1, 6, 6)
    assert torch.equal(vae.features(images), vae.embed(images))
    with pytest.raises(UserError, match="kind draw looks at an image step by step"):
        draw.features(images)
