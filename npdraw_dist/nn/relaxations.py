"""Relaxed, hard and Gaussian draws, and KL divergences (paper section 3.2). Noise is float32 or wider.

Shapes: K classes on the last axis, `...` any axes before it; B batch, L places, K parts, C channels, P patch
side, h x w canvas.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.noise import Noise, gumbel, normal, uniform
from npdraw_dist.core.paste import paste_aligned
from npdraw_dist.nn.blocks import at_least_float32, exactly


def _perturbed(logits: Tensor, generator: Noise) -> Tensor:
    logits = at_least_float32(logits)
    return logits + gumbel(generator, logits)


def gumbel_softmax(logits: Tensor, tau: float, generator: Noise) -> Tensor:
    """logits (..., K) -> a relaxed one-hot draw (..., K) at temperature `tau` (Jang et al. 2017, eq. 2)."""
    return (_perturbed(logits, generator) / tau).softmax(-1)


def straight_through(soft: Tensor) -> Tensor:
    """soft (..., K) -> one-hot of its largest entry (..., K), with the gradient of `soft`."""
    return one_hot_like(soft, soft.detach().argmax(-1)) + (soft - soft.detach())


def one_hot_like(soft: Tensor, index: Tensor) -> Tensor:
    """soft (..., K), index (...) -> one-hot codes, typed like `soft`. `F.one_hot` would wait for the GPU."""
    return torch.zeros_like(soft).scatter_(-1, index[..., None], 1.0)


def categorical_sample(logits: Tensor, generator: Noise) -> Tensor:
    """logits (..., K) -> int64 (...) drawn by Gumbel-max; a logit of -inf is never drawn."""
    return _perturbed(logits.detach(), generator).argmax(-1)


def bernoulli_sample(logits: Tensor, generator: Noise) -> Tensor:
    """logits (...) -> draws 0.0 or 1.0 (...), without a gradient."""
    chance = torch.sigmoid(at_least_float32(logits.detach()))
    return (uniform(chance.shape, generator, chance) < chance).to(chance.dtype)


def binary_concrete(logits: Tensor, tau: float, generator: Noise) -> Tensor:
    """logits (...) -> relaxed draws in (0, 1) at temperature `tau` (Maddison et al. 2017, appendix B)."""
    logits = at_least_float32(logits)
    first, second = gumbel(generator, logits), gumbel(generator, logits)
    return torch.sigmoid((logits + first - second) / tau)


def soft_canvas(bank: Tensor, what: Tensor, gate: Tensor, grid: Grid) -> Tensor:
    """A differentiable canvas (B, C, h, w) from bank (K, C, P, P), weights what (B, L, K), gate (B, L)."""
    with exactly(what):  # in float32 like the decoder's last layer, which takes the canvas
        parts = (what @ grid.ink(bank).flatten(1)) * gate[..., None]
    return grid.ink(paste_aligned(parts.view(*gate.shape, *bank.shape[1:]), grid.of_ink))


def kl_bernoulli(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q || p) of Bernoullis, given their logits (...), (...) -> (...) nats."""
    on = torch.sigmoid(q_logits) * (F.logsigmoid(q_logits) - F.logsigmoid(p_logits))
    off = torch.sigmoid(-q_logits) * (F.logsigmoid(-q_logits) - F.logsigmoid(-p_logits))
    return on + off


def kl_categorical(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q || p) of categoricals, given finite logits or log-probabilities (..., K) -> (...) nats."""
    apply: Callable[..., Tensor] = _CategoricalKL.apply
    return apply(at_least_float32(q_logits), at_least_float32(p_logits))


class _CategoricalKL(torch.autograd.Function):
    """KL(q || p) = sum q d, d = log q - log p, with its gradients q (d - KL) and p - q in closed form.

    This is five times as fast as autograd where q is nearly certain: on a CPU, `exp` is slow if its result is
    close to 0.
    """

    @staticmethod
    def forward(ctx: Any, q_logits: Tensor, p_logits: Tensor) -> Tensor:
        q = q_logits.softmax(-1)
        ratio = q_logits.log_softmax(-1).sub_(p_logits.log_softmax(-1))
        divergence = (q * ratio).sum(-1)
        ctx.save_for_backward(q, ratio, p_logits, divergence)
        return divergence

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        q, ratio, p_logits, divergence = ctx.saved_tensors
        gradient = gradient[..., None]
        of_q = (ratio - divergence[..., None]).mul_(q).mul_(gradient)
        return of_q, p_logits.softmax(-1).sub_(q).mul_(gradient)


def total_kl(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum (...) of the terms of a KL, each (...)."""
    return torch.stack(list(parts.values())).sum(0)


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians: mean and log_std, each (..., Z)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: Noise, temperature: float = 1.0) -> Tensor:
        """A draw (..., Z), with gradients to mean and log_std. temperature: multiplies the deviation."""
        return self.mean + temperature * self.log_std.exp() * normal(generator, self.mean)

    def standardised(self, z: Tensor) -> Tensor:
        """The distance of z (..., Z) from the mean, in standard deviations."""
        return (z - self.mean) * torch.exp(-self.log_std)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), (..., Z) -> (...) nats."""
        return -(0.5 * self.standardised(z).square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """The entropy, (...) nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl(self, p: "Gaussian") -> Tensor:
        """KL(self || p), (...) nats."""
        ratio = torch.exp(2 * (self.log_std - p.log_std))
        shift = p.standardised(self.mean).square()
        return (0.5 * (ratio + shift - 1) + p.log_std - self.log_std).sum(-1)
