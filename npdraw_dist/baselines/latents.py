"""Gaussians whose parameters are network outputs, and samples of a prior.

Shapes: N samples, T steps, Z Gaussians, Q likelihood parameters per pixel, H x W image; `...` any axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from npdraw_dist.nn.relaxations import Gaussian

MAX_LOG_STD = 4.0  # keeps a Gaussian's scale finite if training diverges


@dataclass(frozen=True)
class PriorDraws:
    """N samples of the prior, with the T steps that draw each of them.

    outputs: likelihood parameters after each step, (T, N, Q, H, W). drawn: (N, T) bool, whether a step draws.
    boxes: (N, T, 3), top, left and side in pixels of the square that a step draws. codes: latents by name.
    """

    outputs: Tensor
    drawn: Tensor
    boxes: Tensor
    codes: Mapping[str, Tensor]


def gaussian(raw: Tensor) -> Gaussian:
    """Network outputs (..., 2 Z), which are means, then log standard deviations -> a Gaussian (..., Z)."""
    mean, log_std = raw.float().chunk(2, -1)
    return Gaussian(mean, log_std.clamp(-MAX_LOG_STD, MAX_LOG_STD))


def standard_normal(like: Tensor) -> Gaussian:
    """A standard normal for draws of the shape of `like` (..., Z)."""
    zeros = torch.zeros(like.shape, device=like.device)
    return Gaussian(zeros, zeros)
