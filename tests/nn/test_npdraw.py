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
from npdraw_dist.nn import generative, networks
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.steps import StepLogits
from tests.helpers.tiny_models import all_drawings, all_sequences, log_likelihood, tiny_model, tiny_spec

GREY: dict[str, Any] = {"image_shape": (1, 7, 8), "patch": 3, "stride": 3, "parts": 4, "steps": 9}
COLOUR = {
    "image_shape": (3, 8, 8),
    "downscale": 2,
    "parts": 4,
    "steps": 4,
    "likelihood": "logistic_mixture",
    "binarize": "none",
}
KINDS = [
    pytest.param(order, size, id=f"{order}-{name}")
    for order in ("aligned", "raster")
    for name, size in (("grey", GREY), ("colour", COLOUR))
]


def contract_model(order: str, size: dict[str, Any]) -> NPDraw:
    return tiny_model(tiny_spec(order, **(size if order == "aligned" else size | {"steps": 3})))


def images(model: NPDraw, n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, *model.spec.image_shape), generator=g) / 255
    return (x > 0.5).float() if model.spec.likelihood == "bernoulli" else x


def same(a: PartSequence, b: PartSequence) -> bool:
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("whether", "where", "what"))


def in_unit_interval(t: Tensor) -> bool:
    return bool(t.isfinite().all()) and float(t.min()) >= 0 and float(t.max()) <= 1


@pytest.mark.parametrize(("order", "size"), KINDS)
def test_shapes_and_ranges_of_the_contract(order: str, size: dict[str, Any]) -> None:
    model = contract_model(order, size)
    spec, x = model.spec, images(model, 2)
    grid, channels = model.grid, spec.image_shape[0]
    z = model.encode(x)
    assert z.whether.shape == (2, spec.steps)
    assert int(z.where.max()) < grid.places
    assert int(z.what.max()) < spec.parts
    canvas = model.render(z)
    assert canvas.shape == (2, channels, grid.height, grid.width)
    steps = model.render(z, steps=True)
    assert steps.shape == (2, spec.steps, channels, grid.height, grid.width)
    assert torch.equal(steps[:, -1], canvas)
    probs = model.decode(canvas)
    assert probs.shape == x.shape
    prior_z = model.sample_prior(5, generator=torch.Generator().manual_seed(0), temperature=0.7)
    assert prior_z.whether.shape == (5, spec.steps)
    samples = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert samples.shape == (5, *spec.image_shape)
    assert all(in_unit_interval(t) for t in (canvas, probs, samples))
    lp = model.prior_log_prob(prior_z)
    assert lp.shape == (5,)
    assert lp.isfinite().all()
    assert (lp <= 0).all()
    log_w = model.log_weights(x, k=3, generator=torch.Generator().manual_seed(0))
    assert log_w.shape == (3, 2)
    assert log_w.isfinite().all()
    assert model.bank.parts.shape == (spec.parts, channels, spec.patch, spec.patch)
    assert not any(t.requires_grad for t in (probs, samples, lp, log_w))


@pytest.mark.parametrize(("order", "size"), KINDS)
def test_the_generator_decides_every_draw(order: str, size: dict[str, Any]) -> None:
    model = contract_model(order, size)
    x = images(model, 2)

    def seeded(seed: int) -> tuple[PartSequence, Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        canvas = torch.full((2, x.shape[1], model.grid.height, model.grid.width), 0.5)
        return (
            model.sample_prior(4, g),
            model.sample(4, g),
            model.log_weights(x, 3, g),
            model.draw_pixels(canvas, g),
        )

    torch.manual_seed(1)
    first = seeded(0)
    torch.manual_seed(2)
    again, other = seeded(0), seeded(5)
    assert same(first[0], again[0])
    for a, b, c in zip(first[1:], again[1:], other[1:], strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert in_unit_interval(first[3])


def test_sample_is_decode_of_render_of_sample_prior() -> None:
    model = contract_model("raster", GREY)
    z = model.sample_prior(6, torch.Generator().manual_seed(0))
    expected = model.decode(render(model.bank.parts, z, model.grid))
    assert torch.equal(model.sample(6, torch.Generator().manual_seed(0)), expected)


@pytest.mark.parametrize(
    ("order", "size"), [("aligned", {}), ("raster", {}), ("raster", {"image_shape": (1, 2, 6), "steps": 2})]
)
@torch.no_grad()
def test_encode_is_the_most_likely_sequence(order: str, size: dict[str, Any]) -> None:
    model = tiny_model(tiny_spec(order, **size))
    x, support = images(model, 48), all_drawings(model.spec)
    q, z = model.infer(x), model.encode(x)
    for row in range(48):
        alone = StepLogits(q.whether[row : row + 1], None, q.what[row : row + 1])
        # First the places, then the parts at them: a place can be likely and each of its parts not.
        places = alone.map(lambda logits: logits if logits.ndim == 2 else torch.zeros_like(logits))
        uniform = model.layout.log_prob(places.tile(len(support)), support)
        uniform = uniform + support.whether.sum(1) * math.log(model.spec.parts)
        found = places_of(z[row : row + 1])
        assert found == places_of(support[int(uniform.argmax()) :][:1])
        fits = [index for index in range(len(support)) if places_of(support[index : index + 1]) == found]
        scores = model.layout.log_prob(alone.tile(len(fits)), support[torch.tensor(fits)])
        own = model.layout.log_prob(alone, z[row : row + 1])
        assert float(own) == pytest.approx(float(scores.max()), abs=1e-5)


def places_of(z: PartSequence) -> list[int]:
    return sorted(z.where[z.whether].tolist())


@pytest.mark.parametrize(("order", "size"), KINDS)
def test_log_weights_by_hand(order: str, size: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = contract_model(order, size), []
    model.temperature.data.copy_(torch.tensor([1.3, 0.8, 1.6]))
    x = images(model, 2)
    draw = NPDraw.sample_posterior

    def recording(self: NPDraw, q: StepLogits, generator: torch.Generator | None) -> PartSequence:
        drawn.append(draw(self, q, generator))
        return drawn[-1]

    monkeypatch.setattr(NPDraw, "sample_posterior", recording)
    monkeypatch.setattr(generative, "CHUNK", 4)  # so that k = 5 takes three rounds
    log_w = model.log_weights(x, 5, torch.Generator().manual_seed(0))
    assert [len(z) for z in drawn] == [4, 4, 2]
    z = PartSequence.cat(drawn)  # k after k, images within
    q = model.posterior(x)
    log_q = torch.zeros(10)
    for row in range(10):
        image = row % 2
        on = z.whether[row]
        places = z.where[row][on]
        on_grid = torch.zeros(model.grid.places).index_fill(0, places, 1.0)
        log_q[row] = Bernoulli(logits=q.whether[image] / 1.3).log_prob(on_grid).sum()
        log_q[row] += Categorical(logits=q.what[image, places] / 1.6).log_prob(z.what[row][on]).sum()
        # Of all sets, those of at most T places are possible.
        count = torch.distributions.Bernoulli(logits=q.whether[image] / 1.3)
        every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=model.grid.places)))
        few = every[every.sum(1) <= model.spec.steps]
        log_q[row] -= count.log_prob(few).sum(1).logsumexp(0)
    output = model.decoder(model.render(z))
    repeated = torch.stack([x[row % 2] for row in range(10)])
    log_px = model.likelihood.log_prob(output, repeated)
    if model.spec.likelihood == "bernoulli":
        log_px = Bernoulli(logits=output).log_prob(repeated).sum((1, 2, 3))
    expected = log_px + model.prior_log_prob(z) - log_q
    torch.testing.assert_close(log_w.flatten(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("order", ["aligned", "raster"])
@pytest.mark.parametrize("heads", ["chained", "independent"])
@torch.no_grad()
def test_elbo_below_iwae_below_exact_log_p(order: str, heads: str) -> None:
    """`exact` is of what q can draw; the prior can also draw places twice, or in another order."""
    model = tiny_model(tiny_spec(order, heads))
    model.temperature.data.copy_(torch.tensor([1.3, 0.8, 1.6]))
    x, z = images(model, 3), all_drawings(model.spec)
    for image in x.split(1):
        log_q = model.layout.log_prob(model.infer(image).tile(len(z)), z)
        log_joint = log_likelihood(model, z, image.expand(len(z), -1, -1, -1)) + model.prior_log_prob(z)
        exact = float(log_joint.logsumexp(0))
        rest = all_sequences(model.spec)
        log_rest = log_likelihood(model, rest, image.expand(len(rest), -1, -1, -1))
        whole = float((log_rest + model.prior_log_prob(rest)).logsumexp(0))
        assert exact == pytest.approx(whole, abs=1e-3) if order == "aligned" else exact < whole
        q, log_w = log_q.exp().double(), (log_joint - log_q).double()
        elbo = float(q @ log_w)
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        iwae_2 = float(q @ pairs @ q)
        assert elbo < iwae_2 < exact
        # And log_weights draws these weights with q's frequencies: its mean is the ELBO.
        drawn = model.log_weights(image, 4000, torch.Generator().manual_seed(0))[:, 0].double()
        assert float((drawn[:, None] - log_w).abs().min(1).values.max()) < 1e-3
        error = float((q @ (log_w - elbo) ** 2) / 4000) ** 0.5
        assert float(drawn.mean()) == pytest.approx(elbo, abs=4.5 * error + 1e-4)
        # exp(log_w) has the mean p(x); its spread is enumerated, since a sample misses the rare ones.
        ratio = (log_w - exact).exp()
        error = float((q @ (ratio - 1) ** 2) / 4000) ** 0.5
        assert float((drawn - exact).exp().mean()) == pytest.approx(1, abs=4.5 * error + 1e-3)


@torch.no_grad()
def test_p_of_x_sums_to_one_over_all_binary_images() -> None:
    model = tiny_model(tiny_spec("raster"))
    z = all_sequences(model.spec)
    x = torch.tensor([[(i >> bit) & 1 for bit in range(8)] for i in range(256)]).view(256, 1, 2, 4).float()
    log_pz = model.prior_log_prob(z)
    total = 0.0
    for row in range(len(z)):
        one = PartSequence(z.whether[row : row + 1], z.where[row : row + 1], z.what[row : row + 1])
        output = model.decoder(model.render(one)).expand(256, -1, -1, -1)
        total += float(model.likelihood.log_prob(output, x).exp().sum() * log_pz[row].exp())
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("order", "size"), KINDS)
def test_saved_and_loaded_bitwise_without_pickle(order: str, size: dict[str, Any], tmp_path: Path) -> None:
    model = contract_model(order, size)
    model.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert (
        {"config.json", "model.safetensors"}
        <= set(files)
        <= {"config.json", "model.safetensors", "README.md"}
    )
    pickles = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
    assert not any(content.startswith((b"PK", *pickles)) for content in files.values())  # PK: a zip
    json.loads(files["config.json"])
    again = npdraw_dist.NPDraw.from_pretrained(tmp_path / "model")
    assert again.spec == model.spec
    assert not again.training
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert torch.equal(again.bank.parts, model.bank.parts)
    x = images(model, 2)
    assert torch.equal(
        again.log_weights(x, 3, torch.Generator().manual_seed(0)),
        model.log_weights(x, 3, torch.Generator().manual_seed(0)),
    )


def test_wrong_images_and_banks_are_refused() -> None:
    model = contract_model("aligned", GREY)
    for shape in ((2, 1, 8, 7), (1, 7, 8), (2, 3, 7, 8)):
        with pytest.raises(ValueError, match="images are"):
            model.encode(torch.rand(shape))
        with pytest.raises(ValueError, match="images are"):
            model.log_weights(torch.rand(shape), 2)
    with pytest.raises(ValueError, match="the model takes a bank"):
        model.set_bank(PartBank(torch.rand(5, 1, 3, 3)))


def test_decoding_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = contract_model("aligned", COLOUR)
    canvas = torch.rand(7, 3, 4, 4)
    whole = model.decode(canvas)
    monkeypatch.setattr(networks, "CHUNK", 3)
    torch.testing.assert_close(model.decode(canvas), whole)


@pytest.mark.parametrize(("order", "size"), KINDS)
@pytest.mark.parametrize("latents", [0, 3])
def test_reconstructions_have_the_most_likely_drawing_and_appearance(
    order: str, size: dict[str, Any], latents: int
) -> None:
    model = contract_model(order, size | {"latents": latents})
    x = images(model, 3)
    canvas = model.render(model.encode(x))
    q = model.infer_appearance(x, canvas)
    expected = model.decode(canvas, None if q is None else q.q.mean.detach())
    assert torch.equal(model.reconstruct(x), expected)
    assert latents == 0 or not torch.equal(expected, model.decode(canvas))
    torch.testing.assert_close(model.reconstruct(x[0]), expected[:1])
    with pytest.raises(ValueError, match="images are"):
        model.reconstruct(x[:, :, 1:])


@pytest.mark.parametrize("latents", [0, 3])
def test_interpolations_go_from_one_image_to_the_other(latents: int) -> None:
    model = contract_model("aligned", GREY | {"latents": latents})
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
    with pytest.raises(ValueError, match="between two drawings, not 2 and 1"):
        model.interpolate(torch.cat([a, b]), b)
