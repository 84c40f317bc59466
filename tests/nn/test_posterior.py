"""The posterior: one distribution a step, independent given the image."""

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Categorical

from npdraw_dist.nn.posterior import AlignedPosterior, SlotPosterior, make_posterior
from npdraw_dist.nn.steps import log_prob
from tests.helpers.tiny_models import all_sequences, random_sequence, shaken, tiny_model, tiny_spec

SIZES: list[dict[str, Any]] = [
    {"image_shape": (1, 28, 28), "patch": 5, "stride": 5, "steps": 36, "parts": 7},
    {"image_shape": (1, 7, 8), "patch": 3, "stride": 2, "steps": 12, "parts": 4},
    {"image_shape": (3, 8, 8), "downscale": 2, "patch": 2, "stride": 2, "steps": 4, "parts": 5},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_shapes(order: str, size: dict[str, Any]) -> None:
    size = dict(size) if order == "aligned" else size | {"steps": 3}
    spec = tiny_spec(order, **size)
    posterior = make_posterior(spec)
    assert isinstance(posterior, AlignedPosterior if order == "aligned" else SlotPosterior)
    q = posterior(torch.rand(2, *spec.image_shape))
    assert q.whether.shape == (2, spec.steps)
    assert q.what.shape == (2, spec.steps, spec.parts)
    if order == "aligned":
        assert q.where is None
    else:
        assert q.where is not None
        assert q.where.shape == (2, spec.steps, spec.grid.places)


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_an_image_does_not_see_its_batch(order: str) -> None:
    spec = tiny_spec(order, image_shape=(1, 4, 6), parts=3, steps=6)
    torch.manual_seed(0)
    posterior = make_posterior(spec)
    shaken(posterior)
    x = torch.rand(5, 1, 4, 6)
    whole, alone = posterior(x), posterior(x[2:3])
    torch.testing.assert_close(whole.whether[2:3], alone.whether, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.what[2:3], alone.what, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole.what[2], whole.what[3])


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_q_factorises_over_steps_and_enumerates_to_one(order: str) -> None:
    spec = tiny_spec(order)
    model = tiny_model(spec)
    z = all_sequences(spec)
    q = model.posterior(torch.rand(1, *spec.image_shape)).tile(len(z))
    expected = torch.zeros(len(z))
    for t in range(spec.steps):
        on = z.whether[:, t]
        expected += Bernoulli(logits=q.whether[:, t]).log_prob(on.float())
        expected += on * Categorical(logits=q.what[:, t]).log_prob(z.what[:, t])
        if q.where is not None:
            expected += on * Categorical(logits=q.where[:, t]).log_prob(z.where[:, t])
    torch.testing.assert_close(log_prob(q, z), expected)
    assert float(expected.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_draws_have_the_frequencies_of_q(order: str) -> None:
    spec, n = tiny_spec(order), 20_000
    model = tiny_model(spec)
    q = model.posterior(torch.rand(1, *spec.image_shape))
    z = model.sample_posterior(q.tile(n), torch.Generator().manual_seed(0))
    pairs = [(z.whether.double(), torch.sigmoid(q.whether)[0])]
    pairs.append((z.what.double(), q.what.softmax(-1)[0, :, 1]))
    if q.where is not None:
        pairs.append((z.where.double(), q.where.softmax(-1)[0, :, 1]))
    for draws, p in pairs:
        assert ((draws.mean(0) - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    together = (z.whether[:, 0] & z.whether[:, 1]).double().mean()
    assert float(together) == pytest.approx(float(torch.sigmoid(q.whether).prod()), abs=0.016)


def test_tile_repeats_whole_after_whole() -> None:
    spec = tiny_spec("raster")
    q = tiny_model(spec).posterior(torch.rand(3, *spec.image_shape))
    z = random_sequence(spec, 3)
    tiled = log_prob(q.tile(2), type(z).cat([z, z])).view(2, 3)
    torch.testing.assert_close(tiled, log_prob(q, z).expand(2, 3))


@pytest.mark.parametrize("downscale", [1, 2])
def test_q_starts_as_a_soft_parse(downscale: int) -> None:
    """Before training the most likely parts of a drawn image are those that drew it."""
    steps = (12 // downscale // 3) ** 2
    spec = tiny_spec(
        "aligned", image_shape=(1, 12, 12), downscale=downscale, patch=3, stride=3, steps=steps, parts=6
    )
    torch.manual_seed(0)
    posterior = make_posterior(spec)
    bank = (torch.rand(6, 1, 3, 3) > 0.5).float()
    posterior.set_bank(bank)
    what = torch.randint(6, (50, spec.steps))
    canvas = spec.grid.fold_sum(bank[what])
    image = canvas.repeat_interleave(downscale, 2).repeat_interleave(downscale, 3)
    q = posterior(image)
    same = (bank[q.what.argmax(-1)] == bank[what]).flatten(2).all(-1)
    assert same.float().mean() > 0.97
    drawn = bank[what].flatten(2).sum(-1) > 0
    assert (q.whether[drawn] > 0).float().mean() > 0.97
