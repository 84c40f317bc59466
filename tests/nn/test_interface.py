"""What people do with a trained model: images of any type or drawings in, images or drawings out."""

import inspect
import io
import math
import re
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import npdraw_dist
from npdraw_dist.core.images import to_pil
from npdraw_dist.nn import editing
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_baselines import tiny_baseline
from tests.helpers.tiny_models import COLOUR, GREY, random_drawings, seeded, tiny_model, tiny_spec

LATENT: dict[str, Any] = COLOUR | {"latents": 3, "background": "white"}
each_size = pytest.mark.parametrize("size", [GREY, LATENT], ids=["grey", "colour"])


def model_of(size: dict[str, Any]) -> NPDraw:
    return tiny_model(tiny_spec(**size))


def pictures(model: NPDraw, n: int) -> Tensor:
    """uint8 (n, C, H, W)."""
    return torch.randint(256, (n, *model.spec.image_shape), generator=seeded(), dtype=torch.uint8)


@each_size
def test_all_kinds_of_pictures_give_the_same(size: dict[str, Any]) -> None:
    model = model_of(size)
    images = pictures(model, 3)
    x = (images > 127).float() if model.spec.binarize != "none" else images / 255
    expected, z = model.reconstruct(x), model.encode(x)
    pils = to_pil(images)
    for kind in (images, pils):
        assert torch.equal(model.as_input(kind), x)
        assert torch.equal(model.reconstruct(kind), expected)
        assert torch.equal(model.encode(kind).what, z.what)
    torch.testing.assert_close(model.reconstruct(pils[0]), expected[:1])
    assert torch.equal(*(model.log_weights(kind, 2, generator=seeded()) for kind in (x, images)))
    floats = torch.rand(x.shape)  # are taken as they are, in the model's precision
    assert torch.equal(model.as_input(floats), floats)
    assert torch.equal(model.as_input(floats.double().numpy()), floats)


def test_images_of_a_wrong_range_or_size_are_refused() -> None:
    model = model_of(GREY)
    for method in (model.encode, model.reconstruct, model.as_drawings, model.features, model.log_weights):
        with pytest.raises(UserError, match="200 to 200"):
            method(torch.full((2, 1, 7, 8), 200.0))
    with pytest.raises(UserError, match=r"not \(1, 7, 8\)"):
        model.encode(torch.rand(1, 7, 8))


def test_numbers_out_of_range_and_nothing_at_all_are_refused() -> None:
    for model in (model_of(GREY), tiny_baseline("vae")):
        images = torch.ones(1, *model.spec.image_shape)
        for says, call in (
            ("temperature is 0", partial(model.sample, 2, temperature=0.0)),
            ("temperature is -1", partial(model.sample_trace, 2, temperature=-1.0)),
            ("n is 0", partial(model.sample, 0)),
            ("k is 0", partial(model.score, images, k=0)),
            ("there is no image", partial(model.score, images[:0])),
        ):
            with pytest.raises(UserError, match=says):
                call()
        with pytest.raises(TypeError, match="positional"):
            model.sample(2, 7)  # type: ignore[misc]
    with pytest.raises(UserError, match="top_k is 0"):
        model_of(GREY).draw(2, top_k=0)


@each_size
def test_drawings_of_images_and_of_sequences(size: dict[str, Any]) -> None:
    model = model_of(size)
    x = model.as_input(pictures(model, 3))
    drawn = model.as_drawings(x)
    assert len(drawn) == 3
    assert torch.equal(drawn.images, model.reconstruct(x))
    assert torch.equal(drawn.canvas, model.render(model.encode(x)))
    assert (drawn.u is None) == (model.appearance is None)
    alone = model.as_drawings(drawn.z)
    assert torch.equal(alone.images, model.decode(drawn.canvas))
    assert model.as_drawings(drawn) is drawn
    with pytest.raises(ValueError, match="a drawing must have"):
        model.as_drawings(random_drawings(tiny_spec(), 2))
    one = drawn[-1]
    assert torch.equal(one.images, drawn.images[2:])
    assert len(drawn[1:]) == 2
    assert np.array_equal(drawn.numpy(), drawn.images.numpy())
    assert [picture.size for picture in drawn.to_pil()] == [x.shape[:1:-1]] * 3
    for number in (np.int64(1), torch.tensor(1)):
        assert torch.equal(drawn[number].canvas, drawn[1:2].canvas)
    with pytest.raises(IndexError, match="3"):
        drawn[3]
    assert drawn._repr_html_().count("<img ") == 6
    height, width = x.shape[-2:]
    sheet = Image.open(io.BytesIO(drawn._repr_png_()))
    assert sheet.size == (2 * 3 * (width + 2), 2 * (2 * height + 5))


@each_size
def test_drawings_are_saved_by_the_ending_of_the_name(size: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(size)
    drawn = model.draw(3, seed=0)
    parts = drawn.parts
    assert parts.shape == (3, model.spec.steps, *model.bank_parts.shape[1:])
    assert torch.equal(parts[drawn.z.whether], model.bank_parts[drawn.z.what[drawn.z.whether]])
    assert not parts[~drawn.z.whether].any()
    for name in ("one.gif", "one.png", "one.npz"):
        drawn.save(tmp_path / name)
    with Image.open(tmp_path / "one.gif") as gif:
        assert getattr(gif, "n_frames", 1) > 2
    with np.load(tmp_path / "one.npz") as arrays:
        assert np.array_equal(arrays["images"], drawn.numpy())
        assert np.array_equal(arrays["what"], drawn.z.what.numpy())
        assert ("appearance" in arrays) == (model.appearance is not None)
    for name, says in (("one.jpg", r"name it \.gif, \.png or \.npz"), ("none/one.gif", "cannot write")):
        with pytest.raises(UserError, match=says):
            drawn.save(tmp_path / name)
    assert {path.suffix for path in tmp_path.iterdir()} == {".gif", ".png", ".npz"}


@each_size
def test_completions_of_images_keep_their_parts(size: dict[str, Any]) -> None:
    model = model_of(size)
    images, grid = pictures(model, 2), model.grid
    mask = torch.zeros(grid.rows, grid.columns, dtype=torch.bool)
    mask[0] = True
    before = model.as_drawings(images)
    done = model.complete(images, keep="0:1,:", seed=3)
    assert isinstance(done, Drawings)
    z = model.complete(before.z, mask.view(-1), seeded(3))
    assert torch.equal(done.z.what, z.what)
    assert torch.equal(model.complete(images, keep=mask.numpy(), seed=3).images, done.images)
    kept = mask.view(-1)
    drawn = before.z.whether[:, kept]
    assert torch.equal(done.z.whether[:, kept], drawn)
    assert torch.equal(done.z.what[:, kept][drawn], before.z.what[:, kept][drawn])
    everything = model.complete(images, keep=":,:", seed=0)
    torch.testing.assert_close(everything.images, before.images)
    with pytest.raises(UserError, match="a generator or a seed"):
        model.complete(before.z, kept, torch.Generator(), seed=1)


@each_size
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
    with pytest.raises(ValueError, match=r"2 .* 3"):
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
    for edits, says in (({"put": {0: 4}}, "part 4"), ({"move": {0: 9}}, "place 9")):
        with pytest.raises(UserError, match=says):
            model.edit(z, **edits)
    model = model_of(LATENT)  # an edit keeps u
    images = pictures(model, 2)
    unchanged = model.edit(images)
    torch.testing.assert_close(unchanged.images, model.reconstruct(images))
    assert not torch.allclose(unchanged.images, model.decode(unchanged.canvas))


def test_seeds_in_place_of_generators() -> None:
    for model in (model_of(GREY), tiny_baseline("vae")):
        drawn = model.sample(3, seed=5)
        assert torch.equal(drawn, model.sample(3, generator=seeded(5)))
        assert not torch.equal(drawn, model.sample(3, seed=6))
        with pytest.raises(UserError, match="a generator or a seed"):
            model.sample(3, generator=torch.Generator(), seed=5)
    model = model_of(GREY)
    assert torch.equal(model.sample_prior(3, seed=5).what, model.sample_prior(3, generator=seeded(5)).what)
    assert torch.equal(model.draw(3, None, 5).images, model.draw(3, seed=5).images)
    likeliest = model.sample_prior(3, seed=5, temperature=1e-50)
    assert torch.equal(likeliest.what, model.sample_prior(3, seed=6, temperature=1e-6).what)


def test_samples_are_drawn_at_the_temperature_of_the_model() -> None:
    warm, cold = model_of(GREY), tiny_baseline("gaussian")
    for model in (warm, cold):
        model.spec = model.spec.model_copy(update={"temperature": 0.2})
        assert torch.equal(
            model.sample(9, generator=seeded()), model.sample(9, generator=seeded(), temperature=0.2)
        )
        assert not torch.equal(
            model.sample(9, generator=seeded()), model.sample(9, generator=seeded(), temperature=1.0)
        )
        trace = model.sample_trace(9, generator=seeded())
        assert torch.equal(trace.images, model.sample_trace(9, generator=seeded(), temperature=0.2).images)
    empty = random_drawings(warm.spec, 9)
    done, same = (warm.complete(empty, "0:1,:", seeded(), temperature=heat) for heat in (None, 0.2))
    assert torch.equal(done.what, same.what)
    assert not torch.equal(done.what, warm.complete(empty, "0:1,:", seeded(), temperature=1.0).what)


@each_size
def test_an_own_loop_of_ten_lines_trains(size: dict[str, Any]) -> None:
    model = model_of(size)
    images = pictures(model, 16)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    bounds = []
    for _ in range(30):
        loss, terms = model(images, generator=seeded())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        bounds.append(float(terms["elbo"]))
    assert np.mean(bounds[-5:]) > np.mean(bounds[:5])
    kl = sum(value for name, value in terms.items() if name.startswith("kl_"))
    torch.testing.assert_close(terms["elbo"], terms["reconstruction"] - kl)
    with pytest.raises(UserError, match="condition"):
        model(images, condition=3)


def test_a_score_is_the_bound_of_its_draws() -> None:
    for model in (model_of(GREY), tiny_baseline("vae")):
        x = torch.ones(3, *model.spec.image_shape)
        log_w = model.log_weights(x, 5, generator=seeded(2)).double()
        expected = log_w.exp().mean(0).log().float()
        torch.testing.assert_close(model.score(x, k=5, seed=2), expected)
    known = model_of(GREY)
    x = torch.bernoulli(torch.full((1, *known.spec.image_shape), 0.5), generator=seeded())
    one, many = (
        torch.stack([known.score(x, k=k, seed=seed)[0] for seed in range(20)]).mean() for k in (1, 200)
    )
    assert one < many  # more draws come closer to log p(x)


def test_pixels_are_draws_around_the_means() -> None:
    model = model_of(GREY)
    drawn = model.draw(1, seed=0).repeated(2000)
    pixels = drawn.pixels(seed=1)
    assert set(pixels.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(pixels.mean(0), drawn.images[0], atol=5 * 0.5 / math.sqrt(2000), rtol=0)
    samples = model.sample(3, seed=4, pixels=True)
    assert torch.equal(samples, model.sample(3, generator=seeded(4), pixels=True))


def test_16_bits_are_for_files_only(tmp_path: Path) -> None:
    for model in (model_of(GREY), tiny_baseline("vae")):
        whole = model.sample(1, seed=0)
        for shorten in (model.half, model.bfloat16, partial(model.to, torch.float16)):
            with pytest.raises(UserError, match=r"^a model cannot compute in torch\.b?float16; keep float32"):
                shorten()
        assert torch.equal(model.sample(1, seed=0), whole)
        model.save_pretrained(tmp_path, dtype=torch.float16)
        weights = load_file(tmp_path / "model.safetensors")
        assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}
        opened = type(model).from_pretrained(tmp_path)
        assert {w.dtype for w in opened.parameters()} == {torch.float32}
        torch.testing.assert_close(opened.sample(1, seed=0), whole, atol=0.01, rtol=0)


def test_a_model_opens_on_a_device_and_in_a_precision(tmp_path: Path) -> None:
    model_of(GREY).save_pretrained(tmp_path)
    single, double = (
        npdraw_dist.load(tmp_path, device="cpu", dtype=dtype) for dtype in (None, torch.float64)
    )
    assert {w.dtype for w in double.parameters()} == {torch.float64}
    assert double.draw(2, seed=0).canvas.dtype == torch.float64
    z = single.sample_prior(2, seed=0)
    torch.testing.assert_close(double.prior_log_prob(z).float(), single.prior_log_prob(z))
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"dtype": torch.float16}, "a model cannot compute in torch.float16"),
        ({"dtype": torch.int64}, "dtype is torch.int64; give torch.float32 or"),
        ({"dtype": "float32"}, "dtype is 'float32'; give torch.float32 or torch.float64"),
        ({"device": "gpu"}, "device gpu cannot be used: "),
    ]
    for how, says in refusals:
        with pytest.raises(UserError, match=f"^{re.escape(says)}") as told:
            npdraw_dist.load(tmp_path, **how)
        assert "\n" not in str(told.value)


def test_an_editor_sees_what_load_and_fit_return() -> None:
    for function in (npdraw_dist.load, npdraw_dist.fit):
        assert get_type_hints(function)["return"] is NPDraw
    for verb in ("encode", "draw", "complete", "edit", "score"):
        assert inspect.getdoc(getattr(NPDraw, verb)), verb


def test_the_reference_page_has_all_that_is_public() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    shown = set()
    for path, members in re.findall(
        r"^::: ([\w.]+)\n(?:    options:\n      members: \[([^\]]*)\])?", page, re.M
    ):
        found = resolve_name(path)
        shown.add(path.rpartition(".")[2])
        for member in members.split(","):
            assert not member or inspect.getdoc(getattr(found, member.strip())), f"{path}.{member}"
    assert set(npdraw_dist.__all__) <= shown


def test_features_are_those_of_the_encoder() -> None:
    grey = model_of(GREY)
    x = pictures(grey, 2)
    features = grey.features(x)
    assert features.shape == (2, 16 * 9)
    assert not torch.equal(features[0], features[1])
    changed = x.clone()
    changed[1] = 255 - changed[1]
    assert torch.equal(grey.features(changed)[0], features[0])
    vae, draw = tiny_baseline("vae"), tiny_baseline("draw")
    images = torch.zeros(2, 1, 6, 6)
    assert torch.equal(vae.features(images), vae.embed(images))
    with pytest.raises(UserError, match="kind draw"):
        draw.features(images)
