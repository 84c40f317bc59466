"""Draws by their frequencies, divergences, gradients and the soft canvas against independent answers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.nn.relaxations import (
    Gaussian,
    bernoulli_sample,
    binary_concrete,
    categorical_sample,
    gumbel_softmax,
    kl_bernoulli,
    kl_categorical,
    soft_canvas,
    straight_through,
)
from tests.helpers.tiny_models import seeded

N = 20_000
LOGITS = torch.tensor([1.0, -0.5, 0.3, -2.0, 0.0])


def assert_frequencies(indices: torch.Tensor, logits: torch.Tensor) -> None:
    p = logits.softmax(-1)
    frequencies = torch.bincount(indices, minlength=len(logits)) / len(indices)
    assert ((frequencies - p).abs() < 4.5 * (p * (1 - p) / len(indices)).sqrt() + 1e-9).all()


def test_categorical_sample_has_the_frequencies() -> None:
    masked = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0])
    for logits in (LOGITS, masked):
        state = torch.get_rng_state()
        indices = categorical_sample(logits.expand(N, -1), seeded())
        assert indices.dtype == torch.int64
        assert_frequencies(indices, logits)
        assert torch.equal(indices, categorical_sample(logits.expand(N, -1), seeded()))
        assert torch.equal(state, torch.get_rng_state()), "the generator alone decides"


def test_low_precision_logits_get_float32_noise() -> None:
    logits = torch.zeros(N, 5, dtype=torch.bfloat16)
    soft = gumbel_softmax(logits, 1.0, seeded())
    assert torch.equal(soft, gumbel_softmax(logits.float(), 1.0, seeded()))
    assert torch.equal(categorical_sample(logits, seeded()), categorical_sample(logits.float(), seeded()))
    bits = bernoulli_sample(logits - 0.8, seeded())
    assert bits.dtype == torch.float32
    assert ((bits == 0) | (bits == 1)).all()
    assert float(bits.mean()) == pytest.approx(1 / (1 + math.exp(0.8)), abs=0.015)


def test_gumbel_softmax_is_relaxed_and_its_argmax_has_the_frequencies() -> None:
    soft = gumbel_softmax(LOGITS.expand(N, -1), 0.7, seeded())
    torch.testing.assert_close(soft.sum(-1), torch.ones(N))
    assert (soft > 0).all()
    assert_frequencies(soft.argmax(-1), LOGITS)
    sharp = gumbel_softmax(LOGITS.expand(N, -1), 0.1, seeded())
    assert torch.equal(sharp.argmax(-1), soft.argmax(-1))
    assert float(sharp.amax(-1).mean()) > float(soft.amax(-1).mean())


def test_straight_through_is_one_hot_with_the_soft_gradient() -> None:
    soft = torch.rand(7, 5, generator=seeded()).requires_grad_()
    hard = straight_through(soft)
    assert torch.equal(hard, F.one_hot(soft.argmax(-1), 5).float())
    weights = torch.rand(7, 5, generator=seeded(1))
    (hard * weights).sum().backward()
    torch.testing.assert_close(soft.grad, weights)


def test_the_kl_of_gaussians_is_that_of_torch_distributions() -> None:
    q, p = (Gaussian(*torch.randn(2, 4, 3, generator=seeded(seed))) for seed in (0, 1))
    normal = [Normal(each.mean, each.log_std.exp()) for each in (q, p)]
    torch.testing.assert_close(q.kl(p), kl_divergence(*normal).sum(-1))
    torch.testing.assert_close(q.kl(q), torch.zeros(4))


def test_divergences_are_those_of_torch_distributions() -> None:
    q, p = 3 * torch.randn(2, 6, 4, 9, generator=seeded())
    expected = kl_divergence(Categorical(logits=q), Categorical(logits=p))
    torch.testing.assert_close(kl_categorical(q, p), expected)
    torch.testing.assert_close(kl_categorical(q, p.log_softmax(-1)), expected)
    torch.testing.assert_close(kl_categorical(q, q + 3), torch.zeros(6, 4), atol=1e-6, rtol=0)
    expected = kl_divergence(Bernoulli(logits=q.double()), Bernoulli(logits=p.double()))
    torch.testing.assert_close(kl_bernoulli(q, p), expected.float(), atol=1e-6, rtol=1e-5)


def test_divergences_and_gradients_are_finite_at_extremes() -> None:
    q = torch.tensor([[-200.0, 200.0], [200.0, -200.0], [0.0, 1e4]], requires_grad=True)
    p = torch.tensor([[200.0, -200.0], [200.0, -200.0], [1e4, 0.0]], requires_grad=True)
    bernoulli, categorical = kl_bernoulli(q, p), kl_categorical(q, p)
    torch.testing.assert_close(bernoulli[0], torch.tensor([200.0, 200.0]))
    torch.testing.assert_close(categorical, torch.tensor([400.0, 0.0, 1e4]))
    (bernoulli.sum() + categorical.sum()).backward()
    for tensor in (bernoulli, categorical, q.grad, p.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


def test_divergences_differentiate_in_both_arguments() -> None:
    q, p = torch.randn(2, 3, 5, generator=seeded(), dtype=torch.float64)
    q.requires_grad_()
    p.requires_grad_()
    assert torch.autograd.gradcheck(kl_categorical, (q, p))
    assert torch.autograd.gradcheck(kl_bernoulli, (q, p))


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_a_relaxed_bernoulli_is_on_as_often_and_softer_the_warmer(tau: float) -> None:
    logits = LOGITS.expand(N, -1).clone().requires_grad_()
    gate = binary_concrete(logits, tau, seeded())
    assert float(gate.detach().min()) >= 0
    assert float(gate.detach().max()) <= 1
    p = torch.sigmoid(LOGITS)
    assert (((gate > 0.5).float().mean(0) - p).abs() < 4.5 * (p * (1 - p) / N).sqrt()).all()
    between = ((gate > 0.1) & (gate < 0.9)).float().mean()
    assert float(between) == pytest.approx({0.3: 0.28, 1.0: 0.75}[tau], abs=0.08)
    gate.sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).any()
    assert torch.equal(gate, binary_concrete(LOGITS.expand(N, -1), tau, seeded()))


GRIDS = [Grid(7, 8, 3, stride, background=ground) for stride in (3, 2) for ground in (0.0, 1.0)]
K = 4


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_hot_weights_give_the_rendered_canvas(grid: Grid) -> None:
    g = seeded()
    bank, shape = torch.rand(K, 2, grid.patch, grid.patch, generator=g), (3, grid.places)
    z = PartSequence(
        torch.rand(shape, generator=g) < 0.7,
        torch.arange(grid.places).expand(3, -1).clone(),
        torch.randint(K, shape, generator=g),
    )
    canvas = soft_canvas(bank, F.one_hot(z.what, K).float(), z.whether.float(), grid)
    torch.testing.assert_close(canvas, render(bank, z, grid))
