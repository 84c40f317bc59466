"""The bounds on a latent-variable model small enough to enumerate."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from npdraw_dist.measure.bounds import LogMeanExp, bits_per_dim, standard_error

# p(z), p(x|z) of two values of x, and a q(z|x) that is not the posterior.
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
LIKELIHOOD = torch.tensor([[0.9, 0.1], [0.05, 0.95], [0.5, 0.5], [0.01, 0.99]], dtype=torch.float64)
Q = torch.tensor([[0.4, 0.3], [0.1, 0.2], [0.2, 0.1], [0.3, 0.4]], dtype=torch.float64)
LOG_W = (PRIOR[:, None] * LIKELIHOOD / Q).log()  # (z, x)
EXACT = (PRIOR @ LIKELIHOOD).log()


def elbo(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    bound = LogMeanExp()
    bound.add(log_w)
    return bound.value


def expectation(bound: Callable[[Tensor], Tensor], k: int) -> Tensor:
    """(2,): E[bound] over all 4^k draws of z ~ q, one x after the other."""
    total = torch.zeros(2, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=k):
        total += Q[list(draw)].prod(0) * bound(LOG_W[list(draw)])
    return total


def test_elbo_below_iwae_below_log_p_and_rising_with_k() -> None:
    ladder = [expectation(elbo, 3)] + [expectation(iwae, k) for k in range(2, 6)] + [EXACT]
    for lower, upper in itertools.pairwise(ladder):
        assert (lower < upper).all()
    torch.testing.assert_close(expectation(iwae, 1), ladder[0])


def test_mean_weight_is_the_evidence() -> None:
    torch.testing.assert_close(expectation(lambda w: iwae(w).exp(), 3), EXACT.exp())


def test_both_are_exact_where_q_is_the_posterior() -> None:
    log_w = EXACT.expand(7, 2)
    torch.testing.assert_close(elbo(log_w), EXACT)
    torch.testing.assert_close(iwae(log_w), EXACT)


@pytest.mark.parametrize("chunk", [777, 5000])
def test_chunks_equal_the_whole(chunk: int) -> None:
    log_w = 10 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(1)) - 90
    log_w[17] = -torch.inf
    total = LogMeanExp()
    for part in log_w.split(chunk):
        total.add(part)
    assert total.count == 5000
    expected = logsumexp(log_w.double().numpy(), axis=0) - math.log(5000)
    np.testing.assert_allclose(total.value, expected, rtol=1e-12, atol=1e-9)


def test_bits_per_dim_of_the_uniform_is_eight() -> None:
    assert bits_per_dim(3 * 32 * 32 * math.log(256), 3 * 32 * 32) == pytest.approx(8)
    assert bits_per_dim(math.log(2), 1) == pytest.approx(1)


def test_standard_error() -> None:
    assert standard_error(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(standard_error(torch.ones(1)))
