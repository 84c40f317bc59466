"""The model's contract, and its bounds against the exact log p(x) by enumeration."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

import npdraw_dist
from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.nn import generative
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.steps import StepLogits
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import (
    COLOUR,
    GREY,
    KINDS,
    all_drawings,
    all_sequences,
    log_likelihood,
    of_all_drawings,
    seeded,
    tiny_model,
    tiny_spec,
)

each_kind = pytest.mark.parametrize(
    ("order", "size"), [("aligned", COLOUR), ("raster", GREY | {"steps": 3})], ids=["aligned", "raster"]
)


def model_of(order: str, size: dict[str, Any]) -> NPDraw:
    return tiny_model(tiny_spec(order, **size))


def images(model: NPDraw, n: int) -> Tensor:
    x = torch.randint(256, (n, *model.spec.image_shape), generator=seeded()) / 255
    return (x > 0.5).float() if model.spec.likelihood == "bernoulli" else x


def in_unit_interval(t: Tensor) -> bool:
    return bool(t.isfinite().all()) and float(t.min()) >= 0 and float(t.max()) <= 1


@each_kind
def test_what_a_step_that_draws_nothing_says_is_ignored(order: str, size: dict[str, Any]) -> None:
    model = model_of(order, size)
    z = model.draw(4, seed=0).z
    assert not z.whether.all()
    noise = PartSequence(z.whether, *(torch.where(z.whether, v, 777) for v in (z.where, z.what)))
    expected, found = (model.as_drawings(x) for x in (z, noise))
    assert torch.equal(found.canvas, expected.canvas)
    assert torch.equal(model.surprise(noise), model.surprise(z))
    assert torch.equal(model.prior_log_prob(noise), model.prior_log_prob(z))
    done = [model.complete(x, [0, 1], seed=1) for x in (z, noise)]
    assert all(map(torch.equal, vars(done[0]).values(), vars(done[1]).values()))


@each_kind
def test_drawings_of_a_model_with_other_parts_are_refused(order: str, size: dict[str, Any]) -> None:
    model, other = model_of(order, size), model_of(order, size)
    drawn = other.draw(2, seed=0)
    assert len(model.edit(drawn, remove=[0])) == 2  # the same parts
    other.set_bank(PartBank(1 - other.bank_parts))
    with pytest.raises(ValueError, match="other parts than the drawings"):
        model.edit(drawn, remove=[0])


def test_drawings_of_a_model_with_other_steps_are_refused() -> None:
    model, other = (model_of(order, GREY) for order in ("aligned", "raster"))
    other.set_bank(model.bank)
    drawn = other.draw(64, seed=0)
    with pytest.raises(ValueError, match="step t must draw at place t"):
        model.edit(drawn, remove=[0])


@each_kind
def test_shapes_and_ranges_of_the_contract(order: str, size: dict[str, Any]) -> None:
    model = model_of(order, size)
    spec, x, channels = model.spec, images(model, 2), model.spec.image_shape[0]
    canvas, steps = (model.render(model.encode(x), steps=steps) for steps in (False, True))
    nothing = PartSequence(*(torch.full((1, 4), value) for value in (False, 999, 999)))
    assert not model.render(nothing).any()
    assert canvas.shape == (2, channels, model.grid.height, model.grid.width)
    assert steps.shape == (2, spec.steps, *canvas.shape[1:])
    assert torch.equal(steps[:, -1], canvas)
    probs, samples = model.decode(canvas), model.sample(5, generator=seeded(), temperature=0.7)
    lp, log_w = (
        model.prior_log_prob(model.sample_prior(5, generator=seeded())),
        model.log_weights(x, 3, generator=seeded()),
    )
    found = [tuple(t.shape) for t in (probs, samples, lp, log_w)]
    assert found == [tuple(x.shape), (5, *spec.image_shape), (5,), (3, 2)]
    assert all(in_unit_interval(t) for t in (canvas, probs, samples))
    assert not any(t.requires_grad for t in (probs, samples, lp, log_w))
    with pytest.raises(ValueError, match="the model takes a bank"):
        model.set_bank(PartBank(torch.rand(7, channels, spec.patch, spec.patch)))


@each_kind
def test_the_generator_decides_every_draw(order: str, size: dict[str, Any]) -> None:
    model = model_of(order, size)
    x = images(model, 2)
    canvas = torch.full((2, x.shape[1], model.grid.height, model.grid.width), 0.5)

    def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        g = seeded(seed)
        return (
            model.sample(4, generator=g),
            model.log_weights(x, 3, generator=g),
            model._draw_pixels(canvas, None, g),
        )

    for a, b, c in zip(drawn(0), drawn(0), drawn(5), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert in_unit_interval(model._draw_pixels(canvas, None, seeded()))
    expected = model.decode(render(model.bank.parts, model.sample_prior(6, generator=seeded()), model.grid))
    assert torch.equal(model.sample(6, generator=seeded()), expected)


@pytest.mark.parametrize(
    ("order", "size"), [("aligned", {}), ("raster", {"image_shape": (1, 2, 6), "steps": 2})]
)
@torch.no_grad()
def test_encode_is_the_most_likely_sequence(order: str, size: dict[str, Any]) -> None:
    model = model_of(order, size)
    x, support = images(model, 32), all_drawings(model.spec)
    q, z = model.infer(x), model.encode(x)

    def places_of(row: int, z: PartSequence) -> list[int]:
        return sorted(z.where[row][z.whether[row]].tolist())

    for row in range(32):
        alone = StepLogits(q.whether[row : row + 1], None, q.what[row : row + 1])
        # First the places, then the parts at them: a place can be likely and each of its parts not.
        places = alone.map(lambda logits: logits if logits.ndim == 2 else torch.zeros_like(logits))
        uniform = model.layout.log_prob(places.tile(len(support)), support)
        uniform = uniform + support.whether.sum(1) * math.log(model.spec.parts)
        found = places_of(row, z)
        assert found == places_of(int(uniform.argmax()), support)
        fits = [index for index in range(len(support)) if places_of(index, support) == found]
        scores = model.layout.log_prob(alone.tile(len(fits)), support[torch.tensor(fits)])
        own = model.layout.log_prob(alone, z[row : row + 1])
        assert float(own) == pytest.approx(float(scores.max()), abs=1e-5)


@each_kind
def test_log_weights_by_hand(order: str, size: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = model_of(order, size), []
    model.temperature.data.copy_(torch.tensor([1.3, 0.8, 1.6]))
    x = images(model, 2)
    draw = NPDraw.sample_posterior

    def recording(self: NPDraw, q: StepLogits, generator: torch.Generator | None) -> PartSequence:
        drawn.append(draw(self, q, generator))
        return drawn[-1]

    monkeypatch.setattr(NPDraw, "sample_posterior", recording)
    monkeypatch.setattr(generative, "CHUNK", 4)  # so that k = 5 takes three rounds
    log_w = model.log_weights(x, 5, generator=seeded())
    assert [len(z) for z in drawn] == [4, 4, 2]
    z = PartSequence.cat(drawn)  # k after k, images within
    q = model.posterior(x)
    log_q = torch.zeros(10)
    # Of all sets of places, those of at most T are possible.
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=model.grid.places)))
    few = every[every.sum(1) <= model.spec.steps]
    for row in range(10):
        image, on = row % 2, z.whether[row]
        places = z.where[row][on]
        on_grid = torch.zeros(model.grid.places).index_fill(0, places, 1.0)
        chance = Bernoulli(logits=q.whether[image] / 1.3)
        log_q[row] = chance.log_prob(on_grid).sum() - chance.log_prob(few).sum(1).logsumexp(0)
        log_q[row] += Categorical(logits=q.what[image, places] / 1.6).log_prob(z.what[row][on]).sum()
    output = model.decoder(model.render(z))
    repeated = torch.stack([x[row % 2] for row in range(10)])
    log_px = model.likelihood.log_prob(output, repeated)
    if model.spec.likelihood == "bernoulli":
        log_px = Bernoulli(logits=output).log_prob(repeated).sum((1, 2, 3))
    expected = log_px + model.prior_log_prob(z) - log_q
    torch.testing.assert_close(log_w.flatten(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@torch.no_grad()
def test_elbo_below_iwae_below_exact_log_p(kind: tuple[str, ...]) -> None:
    """`exact` sums over what q can draw; the prior can also draw places twice, or in another order."""
    model = tiny_model(tiny_spec(*kind))
    model.temperature.data.copy_(torch.tensor([1.3, 0.8, 1.6]))
    for image in images(model, 3).split(1):
        _, _, log_q, log_joint = of_all_drawings(model, image)
        exact = float(log_joint.logsumexp(0))
        rest = all_sequences(model.spec)
        log_rest = log_likelihood(model, rest, image.expand(len(rest), -1, -1, -1))
        whole = float((log_rest + model.prior_log_prob(rest)).logsumexp(0))
        assert exact == pytest.approx(whole, abs=1e-3) if kind[0] == "aligned" else exact < whole
        q, log_w = log_q.exp().double(), (log_joint - log_q).double()
        elbo = float(q @ log_w)
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        assert elbo < float(q @ pairs @ q) < exact
        # And log_weights draws these weights with q's frequencies: its mean is the ELBO.
        drawn = model.log_weights(image, 4000, generator=seeded())[:, 0].double()
        assert float((drawn[:, None] - log_w).abs().min(1).values.max()) < 1e-3
        error = float((q @ (log_w - elbo) ** 2) / 4000) ** 0.5
        assert float(drawn.mean()) == pytest.approx(elbo, abs=4.5 * error + 1e-4)
        # exp(log_w) has the mean p(x); its spread is enumerated, since a sample misses the rare ones.
        ratio = (log_w - exact).exp()
        error = float((q @ (ratio - 1) ** 2) / 4000) ** 0.5
        assert float((drawn - exact).exp().mean()) == pytest.approx(1, abs=4.5 * error + 1e-3)


def test_of_no_drawings_there_are_no_images() -> None:
    model = model_of("aligned", COLOUR)
    drawn = model.draw(3, seed=0)
    chosen = model.as_drawings(drawn.z)[drawn.z.whether.sum(1) > 99]
    assert chosen.images.shape == (0, *model.spec.image_shape)
    with pytest.raises(UserError, match="draws"):
        model(drawn.images, draws=0)


def test_saved_and_loaded_bitwise_without_pickle(tmp_path: Path) -> None:
    model = model_of("aligned", COLOUR | {"background": "white"})
    model.temperature.data.copy_(torch.tensor([1.25, 2.0, 0.8]))
    model.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    pickles = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
    assert not any(content.startswith((b"PK", *pickles)) for content in files.values())  # PK: a zip
    json.loads(files["config.json"])
    again = npdraw_dist.NPDraw.from_pretrained(tmp_path / "model")
    assert again.spec == model.spec
    assert again.grid.background == 1
    assert not again.training
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    x = images(model, 2)
    assert torch.equal(
        again.log_weights(x, 3, generator=seeded()), model.log_weights(x, 3, generator=seeded())
    )


def test_decoding_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("aligned", COLOUR)
    canvas = torch.rand(7, 3, 4, 4)
    whole = model.decode(canvas)
    monkeypatch.setattr(generative, "CHUNK", 3)
    torch.testing.assert_close(model.decode(canvas), whole)


def test_a_chunk_has_fewer_rows_where_images_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("aligned", COLOUR)
    x, numbers = images(model, 3), model.likelihood_of(torch.rand(1, 3, 4, 4)).numel()
    monkeypatch.setattr(generative, "CHUNK_NUMBERS", 2 * numbers + 1)
    assert model.rows_at_once == 2
    found, generator = model.importance(x, 4, seeded()), seeded()
    parts = [model.importance(some, 4, generator) for some in (x[:2], x[2:])]  # an image is drawn 4 times
    assert torch.equal(found.log_w, torch.cat([part.log_w for part in parts], 1))
    assert torch.equal(found.analytic, torch.cat([part.analytic for part in parts], 1))
    monkeypatch.setattr(generative, "CHUNK_NUMBERS", 1)
    assert model.importance(x, 2, seeded()).log_w.shape == (2, 3)


@each_kind
@pytest.mark.parametrize("latents", [0, 3])
def test_reconstructions_have_the_most_likely_drawing_and_appearance(
    order: str, size: dict[str, Any], latents: int
) -> None:
    model = model_of(order, size | {"latents": latents})
    x = images(model, 3)
    canvas = model.render(model.encode(x))
    q = model.infer_appearance(x, canvas)
    expected = model.decode(canvas, None if q is None else q.q.mean.detach())
    assert torch.equal(model.reconstruct(x), expected)
    assert latents == 0 or not torch.equal(expected, model.decode(canvas))
    torch.testing.assert_close(model.reconstruct(x[0]), expected[:1])


@pytest.mark.parametrize("latents", [0, 3])
def test_interpolations_go_from_one_image_to_the_other(latents: int) -> None:
    model = model_of("aligned", GREY | {"latents": latents})
    a, b = images(model, 2).split(1)
    z_a, z_b = model.encode(a), model.encode(b)
    way = model.interpolate(a, b[0])
    differ = (z_a.whether != z_b.whether) | (z_a.whether & z_b.whether & (z_a.what != z_b.what))
    assert way.shape == (int(differ.sum()) + 1, *model.spec.image_shape)
    assert len(way) > 2
    torch.testing.assert_close(way[:1], model.reconstruct(a))
    torch.testing.assert_close(way[-1:], model.reconstruct(b))
    drawings = model.interpolate(z_a, z_b)
    torch.testing.assert_close(drawings[-1:], model.decode(model.render(z_b)))
    assert torch.allclose(way, drawings) == (latents == 0)
    torch.testing.assert_close(model.interpolate(a, a), model.reconstruct(a))
    with pytest.raises(ValueError, match="not 2 and 1"):
        model.interpolate(torch.cat([a, b]), b)
