"""Bounds on log p(x) from importance weights (Burda et al. 2016).

Shapes: k importance samples, B images. log_w (k, B) = log p(x|z) + log p(z) - log q(z|x) in nats,
each z drawn from q: a sampled KL, never the analytic one, else the log-mean-exp bounds nothing.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def elbo(log_w: Tensor) -> Tensor:
    """(k, B) -> (B,) nats: the evidence lower bound, averaged over the k samples."""
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """(k, B) -> (B,) nats: the importance-weighted bound, log-mean-exp over k (Burda et al., eq. 8)."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(k, B) -> (B,) in [1, k]: (sum w)^2 / sum w^2, how many of the k samples count."""
    return torch.exp(2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0))


def bits_per_dim(nll_nats: Number, dimensions: int) -> Number:
    """Negative log-likelihood in nats an image of `dimensions` values -> bits a value."""
    return nll_nats / (dimensions * math.log(2))


def standard_error(values: Tensor) -> float:
    """(N,) -> the standard error of their mean; NaN where N is 1."""
    if len(values) < 2:
        return math.nan
    return float(values.double().std() / math.sqrt(len(values)))


class LogMeanExp:
    """`iwae` of log-weights that arrive in chunks: k of thousands in the memory of one chunk."""

    def __init__(self) -> None:
        self.count = 0
        self._log_sum: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Adds (k', B) log-weights of the same B images."""
        chunk = log_w.detach().double().logsumexp(0)
        self._log_sum = chunk if self._log_sum is None else torch.logaddexp(self._log_sum, chunk)
        self.count += len(log_w)

    @property
    def value(self) -> Tensor:
        """(B,) float64 nats over all k samples added so far."""
        assert self._log_sum is not None, "nothing added"
        return self._log_sum - math.log(self.count)
