"""The importance-weighted bound against SciPy, bits per dimension, and the standard error."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from npdraw_dist.measure.bounds import LogMeanExp, bits_per_dim, standard_error


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
