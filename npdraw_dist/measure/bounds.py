"""Bounds on log p(x) from importance weights (Burda et al. 2016).

Shapes: k importance samples, B images, N values. log_w (k, B) = log p(x|z) + log p(z) - log q(z|x) in nats,
each z drawn from q. With an analytic KL in place of the log-ratio, the log-mean-exp would not be a bound.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def bits_per_dim(nll_nats: float, dimensions: int) -> float:
    """Converts the NLL of an image with `dimensions` values from nats to bits per value."""
    return nll_nats / (dimensions * math.log(2))


def standard_error(values: Tensor | NDArray[np.float64]) -> float:
    """Values (N,) -> the standard error of their mean; NaN for one value."""
    numbers = torch.as_tensor(values).double()
    return float(numbers.std() / math.sqrt(len(numbers))) if len(numbers) > 1 else math.nan


class LogMeanExp:
    """The importance-weighted bound (Burda et al., eq. 8), from log-weights that arrive in chunks along k."""

    def __init__(self) -> None:
        self.count = 0
        self._log_sum: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Adds more log-weights of the same B images, (k', B)."""
        chunk = log_w.detach().double().logsumexp(0)
        self._log_sum = chunk if self._log_sum is None else torch.logaddexp(self._log_sum, chunk)
        self.count += len(log_w)

    @property
    def value(self) -> Tensor:
        """The bound from all samples added so far: (B,) float64, nats."""
        assert self._log_sum is not None, "nothing added"
        return self._log_sum - math.log(self.count)
