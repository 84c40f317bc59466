"""The posterior of one vector for all steps, which draw their places: its draws, bounds and gradient."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.authors.network import FlatPosterior
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.nn.steps import StepLogits
from tests.helpers.tiny_models import all_drawings, assert_frequencies, shaken, tiny_model, tiny_spec

SIZES: list[dict[str, Any]] = [
    {"image_shape": (1, 28, 28), "patch": 5, "stride": 5, "steps": 36, "parts": 7},
    {"image_shape": (3, 64, 48), "downscale": 2, "patch": 8, "stride": 8, "steps": 12, "parts": 5},
]


def flat_spec(**changes: Any) -> ModelSpec:
    return tiny_spec("aligned", "independent", "authors", **changes)


def flat_model(**changes: Any) -> NPDraw:
    model = tiny_model(flat_spec(**changes))
    with torch.no_grad():  # so that the draws are neither certain nor uniform
        for parameter in model.prior.parameters():
            parameter.mul_(0.5)
    return model


def log_joint(model: NPDraw, z: PartSequence, image: Tensor) -> Tensor:
    output = model.decoder(model.render(z))
    return model.likelihood.log_prob(output, image.expand(len(z), -1, -1, -1)) + model.prior.log_prob(z)


@pytest.mark.parametrize("size", SIZES)
def test_shapes_and_gradients(size: dict[str, Any]) -> None:
    spec = flat_spec(**size)
    torch.manual_seed(0)
    posterior = FlatPosterior(spec)
    shaken(posterior, 0.1)
    q = posterior(torch.rand(2, *spec.image_shape))
    assert q.whether.shape == (2, spec.steps)
    assert q.what.shape == (2, spec.steps, spec.parts)
    assert q.where is not None
    assert q.where.shape == (2, spec.steps, spec.grid.places)
    (q.whether.sin().sum() + q.what.sin().sum() + q.where.sin().sum()).backward()
    for name, parameter in posterior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_no_pixel_is_overlooked_and_no_image_sees_its_batch() -> None:
    posterior = FlatPosterior(flat_spec(**SIZES[0]))
    shaken(posterior, 0.1)
    x = torch.rand(3, 1, 28, 28, requires_grad=True)
    q = posterior(x)
    torch.testing.assert_close(posterior(x[1:2]).what, q.what[1:2], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(q.what[1].sin().sum(), x)
    assert not gradient[0].any()
    assert (gradient[1].abs() > 0).float().mean() > 0.95


def test_its_sizes_are_the_authors() -> None:
    """Counted by hand, and in their code: at width 128 for 36 steps, 36 places and 50 parts."""
    posterior = FlatPosterior(flat_spec(encoder_width=128, **SIZES[0] | {"parts": 50}))
    convolutions = 128 * (9 + 1) + 3 * 128 * (128 * 9 + 1) + 4 * 2 * 128
    heads = 128 * (512 + 1) + 2 * 128 * 129 + 36 * 129 * (50 + 36 + 1)
    assert sum(p.numel() for p in posterior.parameters()) == convolutions + heads == 947_772


def test_q_enumerates_to_one() -> None:
    model, z = flat_model(), all_drawings(flat_spec())
    assert len(z) == 25  # of two steps, each: nothing, or a part of two at a place of two
    q = model.infer(torch.rand(1, *model.spec.image_shape)).tile(len(z))
    expected = Bernoulli(logits=q.whether).log_prob(z.whether.float())
    assert q.where is not None
    choice = Categorical(logits=q.where).log_prob(z.where) + Categorical(logits=q.what).log_prob(z.what)
    log_q = model.layout.log_prob(q, z)
    torch.testing.assert_close(log_q, (expected + choice * z.whether).sum(1))
    assert float(log_q.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_draws_have_the_frequencies_of_q() -> None:
    model, every, n = flat_model(), all_drawings(flat_spec()), 20_000
    q = model.infer(torch.rand(1, *model.spec.image_shape))
    z = model.sample_posterior(q.tile(n), torch.Generator().manual_seed(0)).canonical()
    assert_frequencies(model, q, z, every)


@torch.no_grad()
def test_each_choice_has_its_temperature() -> None:
    model = flat_model()
    x = torch.rand(2, *model.spec.image_shape)
    before = model.posterior(x)
    model.temperature.copy_(torch.tensor([2.0, 4.0, 8.0]))
    after = model.infer(x)
    for divisor, name in ((2, "whether"), (4, "where"), (8, "what")):
        torch.testing.assert_close(getattr(after, name), getattr(before, name) / divisor)


@torch.no_grad()
def test_encode_is_the_likeliest_choice_of_each_step() -> None:
    model = flat_model()
    x, support = torch.rand(16, *model.spec.image_shape).round(), all_drawings(model.spec)
    q, z = model.infer(x), model.encode(x)
    for row in range(16):
        alone = StepLogits(*(logits[row : row + 1] for logits in (q.whether, q.where, q.what)))  # type: ignore[index]
        own = z[row : row + 1]
        fits = support[(support.whether == own.whether).all(1)]
        scores = model.layout.log_prob(alone.tile(len(fits)), fits)
        assert float(model.layout.log_prob(alone, own)) == pytest.approx(float(scores.max()), abs=1e-5)
        assert torch.equal(own.whether[0], alone.whether[0] > 0)


@torch.no_grad()
def test_elbo_below_iwae_below_exact_log_p_and_the_weights_are_theirs() -> None:
    model = flat_model()
    model.temperature.copy_(torch.tensor([1.3, 0.9, 1.6]))
    z = all_drawings(model.spec)
    for image in torch.rand(3, 1, *model.spec.image_shape).round():
        log_q = model.layout.log_prob(model.infer(image).tile(len(z)), z)
        joint = log_joint(model, z, image)
        exact = float(joint.logsumexp(0))
        q, log_w = log_q.exp().double(), (joint - log_q).double()
        elbo = float(q @ log_w)
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        assert elbo < float(q @ pairs @ q) < exact
        drawn = model.log_weights(image, 4000, torch.Generator().manual_seed(0))[:, 0].double()
        assert float((drawn[:, None] - log_w).abs().min(1).values.max()) < 1e-3
        error = float((q @ (log_w - elbo) ** 2) / 4000) ** 0.5
        assert float(drawn.mean()) == pytest.approx(elbo, abs=4.5 * error + 1e-4)


@torch.no_grad()
def test_the_mean_of_the_kl_terms_is_the_kl_by_enumeration() -> None:
    model = flat_model()
    z = all_drawings(model.spec)
    for image in torch.rand(3, 1, *model.spec.image_shape):
        q = model.infer(image).tile(len(z))
        log_q = model.layout.log_prob(q, z).double()
        terms = model.layout.terms(q, model.prior(z), z)
        exact = float(log_q.exp() @ (log_q - model.prior.log_prob(z).double()))
        kl = torch.stack(list(terms.kl.values())).sum(0).double()
        assert float(log_q.exp() @ kl) == pytest.approx(exact, abs=1e-4)
        assert float(log_q.exp() @ terms.kl["kl_where"].double()) > 1e-3
        torch.testing.assert_close(terms.log_q.sum(1).double(), log_q)


def test_the_gradient_of_hard_draws_is_that_of_the_bound() -> None:
    """Averaged over all pairs of draws, with their probability, by enumeration."""
    model = flat_model().double()
    objective = VAEObjective(model, VAEConfig(parse_weight=0, draws=2))
    z, n = all_drawings(model.spec), len(all_drawings(model.spec))
    x = torch.rand(1, *model.spec.image_shape, dtype=torch.float64).round()
    log_q = model.layout.log_prob(model.infer(x).tile(n), z)
    bound = log_q.exp() @ (log_joint(model, z, x) - log_q)
    exact = torch.autograd.grad(bound, list(model.parameters()))
    first, second = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    pairs = PartSequence.cat([z[first], z[second]])
    model.sample_posterior = lambda q, generator: pairs  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(0)
    loss, _ = objective._hard(x.expand(n * n, -1, -1, -1), model.infer(x).tile(n * n), generator)
    weight = (log_q[first] + log_q[second]).exp().detach()
    estimated = torch.autograd.grad(-(weight @ loss), list(model.parameters()))
    for (name, _), found, expected in zip(model.named_parameters(), estimated, exact, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name
