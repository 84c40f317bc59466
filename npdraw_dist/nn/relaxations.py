"""Draws of discrete steps with a gradient, their canvas, and their divergences (paper section 3.2).

All noise comes from the given generator (None: torch's own), in float32 at least, since bfloat16
noise has too few values to draw from K classes fairly.
Shapes: K classes on the last axis, `...` any axes before it; B batch, L places, K parts, C channels, P patch
side, h x w canvas.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.paste import paste_aligned
from npdraw_dist.nn.precision import at_least_float32, exactly


def gumbel_noise(
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Independent standard Gumbel draws of `shape`, always finite."""
    exponential = torch.empty(tuple(shape), device=device, dtype=dtype).exponential_(generator=generator)
    return -exponential.clamp_(min=torch.finfo(dtype).tiny).log_()


def _perturbed(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    logits = at_least_float32(logits)
    return logits + gumbel_noise(logits.shape, generator, logits.device, logits.dtype)


def gumbel_softmax(logits: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
    """logits (..., K) -> a relaxed one-hot draw (..., K) at temperature `tau` (Jang et al. 2017, eq. 2)."""
    return (_perturbed(logits, generator) / tau).softmax(-1)


def straight_through(soft: Tensor) -> Tensor:
    """soft (..., K) -> one-hot of its largest entry (..., K), with the gradient of `soft`."""
    return one_hot_like(soft, soft.detach().argmax(-1)) + (soft - soft.detach())


def one_hot_like(soft: Tensor, index: Tensor) -> Tensor:
    """soft (..., K), index (...) int64 -> one-hot codes (..., K) of the type of `soft`.

    `F.one_hot` reads the largest index, which on some devices waits for it.
    """
    return torch.zeros_like(soft).scatter_(-1, index[..., None], 1.0)


def categorical_sample(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """logits (..., K) -> int64 (...) drawn by Gumbel-max; a logit of -inf is never drawn."""
    return _perturbed(logits.detach(), generator).argmax(-1)


def bernoulli_straight_through(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """logits (...) -> draws 0.0 or 1.0 (...), with the gradient of sigmoid(logits)."""
    chance = torch.sigmoid(at_least_float32(logits))
    noise = torch.rand(chance.shape, generator=generator, device=chance.device, dtype=chance.dtype)
    hard = (noise < chance.detach()).to(chance.dtype)
    return hard + (chance - chance.detach())


def binary_concrete(logits: Tensor, tau: float, generator: torch.Generator | None) -> Tensor:
    """logits (...) -> draws in (0, 1) (...) at temperature `tau`, above 1/2 with chance sigmoid(logits).

    The relaxed Bernoulli of Maddison et al. (2017, section 2.2 and appendix B).
    """
    logits = at_least_float32(logits)
    first, second = (gumbel_noise(logits.shape, generator, logits.device, logits.dtype) for _ in range(2))
    return torch.sigmoid((logits + first - second) / tau)


def soft_canvas(bank: Tensor, what: Tensor, gate: Tensor, grid: Grid) -> Tensor:
    """bank (K, C, P, P), what (B, L, K) weights, gate (B, L) -> (B, C, h, w). Step t is place t.

    The weights and the gate mix ink: a part half drawn is half way to the background.
    """
    with exactly(what):  # the decoder's last layer sees the canvas
        parts = (what @ grid.ink(bank).flatten(1)) * gate[..., None]
    return grid.ink(paste_aligned(parts.view(*gate.shape, *bank.shape[1:]), grid.of_ink))


def kl_bernoulli(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q || p) of Bernoullis given by logits: (...), (...) -> (...) nats."""
    on = torch.sigmoid(q_logits) * (F.logsigmoid(q_logits) - F.logsigmoid(p_logits))
    off = torch.sigmoid(-q_logits) * (F.logsigmoid(-q_logits) - F.logsigmoid(-p_logits))
    return on + off


def kl_categorical(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q || p) of categoricals: finite logits or log-probabilities (..., K) -> (...) nats."""
    apply: Callable[..., Tensor] = _CategoricalKL.apply
    return apply(at_least_float32(q_logits), at_least_float32(p_logits))


class _CategoricalKL(torch.autograd.Function):
    """KL(q || p) with its gradient in closed form: five times as fast as autograd's where q is certain.

    With d = log q - log p: KL = sum q d, dKL/dq_logits = q (d - KL), dKL/dp_logits = p - q.
    `softmax`, and not `exp` of the log-probabilities: on a CPU `exp` is slow where its result is nearly 0.
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
    """The parts of a KL by name, each (...) -> their sum (...)."""
    return torch.stack(list(parts.values())).sum(0)
