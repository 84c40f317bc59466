"""The logits of T steps, as the prior gives them, and their log-probabilities and KLs.

The posterior gives the same for each of L places, without where; or for each step (`nn.authors`).
Shapes: B batch, T steps, L places, K parts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.blocks import at_least_float32
from npdraw_dist.nn.relaxations import kl_bernoulli, kl_categorical


@dataclass(frozen=True)
class StepLogits:
    """whether (B, T); where (B, T, L), or None if step t is place t; what (B, T, K)."""

    whether: Tensor
    where: Tensor | None
    what: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "StepLogits":
        """The logits with `change` applied to each of the three tensors."""
        where = None if self.where is None else change(self.where)
        return StepLogits(change(self.whether), where, change(self.what))

    def float32(self) -> "StepLogits":
        """The logits in float32 or wider: bfloat16 has too few digits for a KL."""
        return self.map(at_least_float32)

    def tile(self, copies: int) -> "StepLogits":
        """The whole batch repeated `copies` times."""
        return self.map(lambda logits: logits.repeat(copies, *(1 for _ in logits.shape[1:])))


def log_prob(logits: StepLogits, z: PartSequence) -> Tensor:
    """log p(z), (B,) nats. where and what count only at steps that draw (paper eq. 2)."""
    return log_prob_steps(logits, z).sum(1)


def log_prob_steps(logits: StepLogits, z: PartSequence) -> Tensor:
    """The log-probability of each step of z, (B, T) nats."""
    drawn = z.whether.to(logits.whether.dtype)
    whether = -F.binary_cross_entropy_with_logits(logits.whether, drawn, reduction="none")
    choice = chosen(logits.what, z.what)
    if logits.where is not None:
        choice = choice + chosen(logits.where, z.where)
    return whether + torch.where(z.whether, choice, 0.0)


def chosen(logits: Tensor, index: Tensor) -> Tensor:
    """The log-probability of `index` (B, T) under `logits` (B, T, N), (B, T)."""
    # The logit minus `logsumexp` has a slower gradient, above all where probabilities are tiny.
    return logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]


def kl_steps(q: StepLogits, p: StepLogits, weight: Tensor | None = None) -> dict[str, Tensor]:
    """KL(q || p) of each step's choices, (B, T) nats, given the steps before (paper eq. 5).

    q and p either both draw *where* or both have it given. q's probability of drawing (or `weight`, (B, T))
    weights *what* and *where*. Exact in a step's own choices if p has them independent.
    """
    drawn = torch.sigmoid(q.whether) if weight is None else weight
    if q.where is None:
        kl_where = torch.zeros_like(q.whether)
    else:
        assert p.where is not None
        kl_where = drawn * kl_categorical(q.where, p.where)
    return {
        "kl_whether": kl_bernoulli(q.whether, p.whether),
        "kl_what": drawn * kl_categorical(q.what, p.what),
        "kl_where": kl_where,
    }


def aligned_where(batch: int, places: int, device: torch.device) -> Tensor:
    """(B, L) int64: step t is place t."""
    return torch.arange(places, device=device).expand(batch, -1)
