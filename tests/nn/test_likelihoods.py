"""The likelihoods against SciPy in float64, by summing over all values, and by their own draws."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp

from npdraw_dist.nn.likelihoods import (
    Bernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Likelihood,
    make_likelihood,
)
from tests.helpers.tiny_models import seeded

Array = NDArray[np.float64]
VALUES = torch.arange(256) / 255


def random_output(likelihood: Likelihood, size: int = 3, batch: int = 4, spread: float = 1.0) -> torch.Tensor:
    shape = (batch, likelihood.parameters_per_pixel, size, size)
    return torch.randn(shape, generator=seeded(3)) * spread


def random_image(channels: int) -> torch.Tensor:
    x = torch.randint(0, 256, (4, channels, 3, 3), generator=seeded(4)) / 255
    x[0, :, 0, 0], x[1, :, 0, 0] = 0.0, 1.0
    return x


def reference_scale(raw: Array, start: float) -> Array:
    return np.exp(np.minimum(7, -7 + np.logaddexp(0, raw + math.log(math.expm1(start + 7)))))


def reference_mass(x: Array, location: Array, scale: Array) -> Array:
    """log-probability of the bin around x by SciPy's logistic; x in [0, 1], location in [-1, 1]."""
    y, x = 2 * x - 1, np.broadcast_to(x, np.broadcast(x, location).shape)
    upper, lower = (y + 1 / 255 - location) / scale, (y - 1 / 255 - location) / scale
    # On the side where the survival function is small the difference keeps its digits.
    flip = lower > 0
    a, b = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    larger, smaller = stats.logistic.logcdf(a), stats.logistic.logcdf(b)
    inner = larger + np.log(-np.expm1(smaller - larger))
    low, high = stats.logistic.logcdf(upper), stats.logistic.logsf(lower)
    return np.where(x < 0.5 / 255, low, np.where(x > 1 - 0.5 / 255, high, inner))


def reference_mixture(output: Array, x: Array, components: int, channels: int) -> Array:
    """(B, H, W) log p of the first `x.shape[1]` channels of the mixture's pixels."""
    batch, _, height, width = output.shape
    table = output.reshape(batch, -1, components, height, width)
    total = log_softmax(table[:, 0], 1)
    start = ((np.arange(components) + 0.5) * 2 / components - 1)[None, :, None, None]
    coupling = np.tanh(table[:, 1 + 2 * channels :])
    y = 2 * x[:, :, None] - 1
    for c in range(x.shape[1]):
        location = table[:, 1 + c] + start
        if c == 1:
            location = location + coupling[:, 0] * y[:, 0]
        if c == 2:
            location = location + coupling[:, 1] * y[:, 0] + coupling[:, 2] * y[:, 1]
        scale = reference_scale(table[:, 1 + channels + c], -2.0)
        total = total + reference_mass(x[:, c, None], location, scale)
    return logsumexp(total, axis=1)


def test_bernoulli_is_scipys_and_linear_in_x() -> None:
    likelihood = Bernoulli(1)
    output = random_output(likelihood)
    x = (random_image(1) > 0.5).float()
    expected = stats.bernoulli.logpmf(x.numpy(), expit(output.double().numpy())).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(output, x), expected, rtol=1e-5)
    grey = torch.full_like(x, 0.3)
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)
    expected = 0.3 * likelihood.log_prob(output, ones) + 0.7 * likelihood.log_prob(output, zeros)
    torch.testing.assert_close(likelihood.log_prob(output, grey), expected)


def test_logistic_is_scipys() -> None:
    likelihood = DiscretizedLogistic(3)
    output, x = random_output(likelihood), random_image(3)
    location, raw = np.split(output.double().numpy(), 2, 1)
    expected = reference_mass(x.double().numpy(), location, reference_scale(raw, -1.0)).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(output, x), expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_is_scipys(channels: int) -> None:
    likelihood = DiscretizedLogisticMixture(channels)
    assert likelihood.parameters_per_pixel == (30 if channels == 1 else 100)
    output, x = random_output(likelihood), random_image(channels)
    expected = reference_mixture(output.double().numpy(), x.double().numpy(), 10, channels).sum((1, 2))
    np.testing.assert_allclose(likelihood.log_prob(output, x), expected, rtol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 4.0])
@pytest.mark.parametrize(
    ("name", "components"), [("logistic", 10), ("logistic_mixture", 1), ("logistic_mixture", 5)]
)
def test_256_values_sum_to_one(name: str, components: int, spread: float) -> None:
    likelihood = make_likelihood(name, 1, components)
    for row in random_output(likelihood, size=1, batch=8, spread=spread):
        log_p = likelihood.log_prob(row.expand(256, -1, 1, 1), VALUES.view(256, 1, 1, 1))
        assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["bernoulli", "logistic", "logistic_mixture"])
def test_extremes_have_finite_values_and_gradients(name: str) -> None:
    channels = 1 if name == "bernoulli" else 3
    likelihood = make_likelihood(name, channels)
    sizes = torch.tensor([30.0, 1e4]).repeat(32).view(64, 1, 1, 1)
    output = (random_output(likelihood, size=4, batch=64).sign() * sizes).requires_grad_()
    x = torch.cat([torch.zeros(32, channels, 4, 4), torch.ones(32, channels, 4, 4)])
    x[::3] = 100 / 255
    log_p = likelihood.log_prob(output, x)
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert (log_p <= 0).all()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    mean = likelihood.mean(output.detach())
    assert ((mean >= 0) & (mean <= 1)).all()


@pytest.mark.parametrize(("name", "channels"), [("bernoulli", 1), ("logistic", 3), ("logistic_mixture", 1)])
def test_samples_have_the_mean_and_lie_on_the_grid(name: str, channels: int) -> None:
    likelihood = make_likelihood(name, channels)
    output = random_output(likelihood, size=4, batch=1)
    many = output.expand(8000, -1, -1, -1)
    draws = likelihood.sample(many, seeded())
    assert draws.shape == (8000, channels, 4, 4)
    assert ((draws >= 0) & (draws <= 1)).all()
    torch.manual_seed(123)  # the generator alone decides
    assert torch.equal(draws, likelihood.sample(many, seeded()))
    steps = draws * (1 if name == "bernoulli" else 255)
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    error = draws.std(0) / math.sqrt(8000)
    assert ((draws.mean(0) - likelihood.mean(output)[0]).abs() < 4.5 * error + 1e-3).all()


def test_colour_draws_follow_the_pixel_distribution() -> None:
    likelihood = DiscretizedLogisticMixture(3, components=3)
    output = random_output(likelihood, size=1, batch=1) * 0.7
    draws = likelihood.sample(output.expand(20_000, -1, 1, 1), seeded())[..., 0, 0]
    red, green = np.meshgrid(np.arange(256) / 255, np.arange(256) / 255, indexing="ij")
    x = np.stack([red.ravel(), green.ravel()], 1)[:, :, None, None]
    p = np.exp(reference_mixture(output.double().numpy(), x, 3, 3)).reshape(256, 256)
    assert p.sum() == pytest.approx(1, abs=1e-6)
    assert float((draws[:, 0] * draws[:, 1]).mean()) == pytest.approx((p * red * green).sum(), abs=0.01)
    for channel, marginal in enumerate([p.sum(1), p.sum(0)]):
        counts = np.bincount((draws[:, channel] * 255).round().long().numpy(), minlength=256)
        ours, exact = np.cumsum(counts) / len(draws), np.cumsum(marginal)
        assert np.abs(ours - exact).max() < 1.95 / math.sqrt(len(draws))
    assert float((draws.mean(0) - likelihood.mean(output)[0, :, 0, 0]).abs().max()) < 0.05


@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize(
    ("name", "channels"), [("logistic", 3), ("logistic_mixture", 1), ("logistic_mixture", 3)]
)
def test_the_derivative_is_that_of_scipys_values(name: str, channels: int, spread: float) -> None:
    likelihood = make_likelihood(name, channels, components=3)
    output, x = random_output(likelihood, spread=spread).requires_grad_(), random_image(channels)
    grain = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (likelihood.log_prob(output, x) * grain).sum().backward()

    def value(at: Array) -> Array:
        if name == "logistic_mixture":
            return reference_mixture(at, x.double().numpy(), 3, channels)
        location, raw = np.split(at, 2, 1)
        return reference_mass(x.double().numpy(), location, reference_scale(raw, -1.0)).sum(1)

    assert output.grad is not None
    at = output.detach().double().numpy()
    for index in range(likelihood.parameters_per_pixel):  # all pixels at once: none depends on another
        move = np.zeros_like(at)
        move[:, index] = 1e-5
        slope = (value(at + move) - value(at - move)) / 2e-5 * grain.numpy()[:, None, None]
        np.testing.assert_allclose(output.grad[:, index], slope, rtol=1e-3, atol=1e-4)


def test_a_scale_at_its_limit_has_no_derivative() -> None:
    likelihood = DiscretizedLogistic(1)
    output = torch.tensor([[0.0, 20.0]]).view(1, 2, 1, 1).requires_grad_()
    likelihood.log_prob(output, torch.full((1, 1, 1, 1), 0.3)).sum().backward()
    assert output.grad is not None
    assert float(output.grad[0, 1]) == 0
