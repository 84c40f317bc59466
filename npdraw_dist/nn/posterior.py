"""The posterior q(z|x) of whether a part is drawn at each place, and which one (paper section 3.2).

Its features lie on the grid of places. One convolution reads the image at each place, and residual blocks mix
neighbours. `nn.steps` converts the choices into drawings, in any order.
Shapes: B batch, T steps, L places, K parts, C channels, P patch side, H x W image, W feature channels.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.grid import Grid
from npdraw_dist.nn.blocks import (
    ExactConv2d,
    ExactLinear,
    ResidualBlock,
    at_least_float32,
    exactly,
    group_norm,
)
from npdraw_dist.nn.steps import StepLogits
from npdraw_dist.nn.tables import PartCodes

DEPTH = 2  # number of residual blocks on the grid of places
# Before training, a part's probability is divided by e if its squared error (summed over pixels) grows by
# this value. The value for Bernoullis is larger, because binary pixels tell less about their part. If it is
# 0.05, the NLL after 120 s of training is 2 nats higher (docs/results/2026-11-30-method.md).
FIT_NOISE, BERNOULLI_NOISE = 0.02, 1.0


class Trunk(nn.Module):
    """The ink of an image (B, C, H, W) -> features on the grid (B, W, rows, columns)."""

    def __init__(self, grid: Grid, channels: int, scale: int, width: int, dropout: float) -> None:
        """channels: C. scale: image side / canvas side. width: W."""
        super().__init__()
        self.margin = tuple(scale * margin for margin in grid.margins)
        self.cut = nn.Conv2d(channels, width, grid.patch * scale, grid.stride * scale)
        self.place = nn.Parameter(torch.randn(width, grid.rows, grid.columns) * 0.02)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout) for _ in range(DEPTH)))
        self.norm = group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(F.pad(x, self.margin)) + self.place
        return F.silu(self.norm(self.blocks(h)))


class FreeHead(nn.Module):
    """Computes logits of *whether* and *what*, and the fit (`fit_of`), with own weights for each part."""

    def __init__(self, spec: ModelSpec, fit_noise: float) -> None:
        super().__init__()
        grid, self.scale, self.fit_noise = spec.grid, spec.downscale, fit_noise
        self.out = ExactLinear(spec.encoder_width, 1 + spec.parts)
        self.fit = ExactConv2d(
            spec.image_shape[0], spec.parts, grid.patch * self.scale, grid.stride * self.scale
        )

    @torch.no_grad()
    def set_bank(self, parts: Tensor, ink: Tensor) -> None:
        """Initialises the fit from the ink (K, C, P, P) of the parts."""
        weight, bias = fit_of(ink, self.scale, self.fit_noise)
        assert self.fit.bias is not None
        self.fit.weight.copy_(weight)
        self.fit.bias.copy_(bias)

    def forward(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, L, W), padded ink x -> whether (B, L), what without fit (B, L, K), fit (B, L, K)."""
        logits = self.out(features)
        return logits[..., 0], logits[..., 1:], self.fit(x).flatten(2).transpose(1, 2)


class PixelHead(nn.Module):
    """A head like `FreeHead` that depends on a part only through its pixels, as `PixelTable` does.

    The logit of *what* is the dot product of features and the part's code. All parts share the fit's weights.
    """

    def __init__(self, spec: ModelSpec, fit_noise: float) -> None:
        super().__init__()
        grid, self.scale, self.fit_noise = spec.grid, spec.downscale, fit_noise
        shape, self.stride = (spec.image_shape[0], grid.patch, grid.patch), grid.stride * self.scale
        self.grid = grid
        # A bias would change no probability, since it would add the same to the logits of all parts.
        self.look = PartCodes(spec.parts, shape, spec.encoder_width, bias=False)
        self.out = ExactLinear(spec.encoder_width, 1 + spec.encoder_width)
        self.gain = nn.Parameter(torch.ones(2, *shape))  # factors of pixels, and of their squares

    def set_bank(self, parts: Tensor, ink: Tensor) -> None:
        """Copies the parts (K, C, P, P) of the training bank."""
        self.look.set_bank(parts)

    def forward(self, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `FreeHead.forward`."""
        logits = self.out(features)
        with exactly(x):
            x, ink = at_least_float32(x), self.grid.ink(self.look.bank_parts)
            what = logits[..., 1:] @ at_least_float32(self.look()).T
            weight, bias = fit_of(ink, self.scale, self.fit_noise, self.gain)
            fit = F.conv2d(x, weight, bias, self.stride)
        return logits[..., 0], what, fit.flatten(2).transpose(1, 2)


def fit_of(ink: Tensor, scale: int, noise: float, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that computes (|x_l|^2 - |x_l - b_k|^2) / noise (paper section 3.1).

    ink: (K, C, P, P), the parts b_k. scale: image side / canvas side. gain: (2, C, P, P), weights of a
    part's pixels and of their squares; None means that all are 1.
    """
    ones = torch.ones_like(ink[0])
    linear, square = (ones, ones) if gain is None else gain
    weight = (linear * ink).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return 2 / noise * weight / scale**2, -(square * ink.square()).sum((1, 2, 3)) / noise


class StepPosterior(nn.Module, ABC):
    """q(z|x), defined by logits of the choices of each step or of each place."""

    @abstractmethod
    def set_bank(self, parts: Tensor) -> None:
        """Sets the network's parts (K, C, P, P) to those of the training bank."""

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1] -> the features that the heads take as input, (B, W, ...)."""

    @abstractmethod
    def forward(self, x: Tensor) -> StepLogits:
        """x (B, C, H, W) in [0, 1] -> logits of each step, or logits of each place without *where*."""


class Posterior(StepPosterior):
    """Logits from 1x1 heads over the grid, plus a score of how well each part fits the place (`fit_of`).

    Both are in float32. The fit is initialised from the bank, so before training q prefers parts with a small
    squared error. If places overlap by half or more, a part that fits need not be drawn, so the fit does not
    enter *whether*, whose probability starts at T / (2 L).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        grid = self.grid = spec.grid
        self.trunk: nn.Module = Trunk(
            grid, spec.image_shape[0], spec.downscale, spec.encoder_width, spec.dropout
        )
        noise = BERNOULLI_NOISE if spec.likelihood == "bernoulli" else FIT_NOISE
        self.head = (PixelHead if spec.prior.table == "pixels" else FreeHead)(spec, noise)
        self.fit_draws = 2 * grid.stride > grid.patch
        with torch.no_grad():
            self.head.out.weight.mul_(0.1)
            if not self.fit_draws:
                chance = min(spec.steps / grid.places, 1.0) / 2
                self.head.out.bias[0] = math.log(chance / (1 - chance))

    def set_bank(self, parts: Tensor) -> None:
        self.head.set_bank(parts, self.grid.ink(parts))

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1] -> features on the grid (B, W, rows, columns)."""
        return self.trunk(self.grid.ink(x))

    def forward(self, x: Tensor) -> StepLogits:
        """x (B, C, H, W) in [0, 1] -> logits whether (B, L) and what (B, L, K), without *where*."""
        x = self.grid.ink(x)  # so that padding with 0 stands for background
        features = self.trunk(x).flatten(2).transpose(1, 2)
        margin = tuple(self.head.scale * margin for margin in self.grid.margins)
        whether, what, fit = self.head(features, F.pad(x, margin))
        if self.fit_draws:
            whether = whether + fit.amax(-1).clamp(-6, 6)
        return StepLogits(whether, None, what + fit)
