"""The posterior q(z|x): at each place, whether a part is drawn and which (paper section 3.2).

Its features lie on the grid of places: one convolution cuts the image at the places, and residual blocks mix
neighbours. `nn.steps` turns its choices into drawings, in any order.
Shapes: B batch, T steps, L places, K parts, W channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.grid import Grid
from npdraw_dist.nn.blocks import ExactConv2d, ExactLinear, ResidualBlock, group_norm
from npdraw_dist.nn.steps import StepLogits

DEPTH = 2  # residual blocks on the grid of places
# Added to a part's squared error (sum over pixels), it divides the part's chance by e. Pixels that are drawn
# from Bernoullis say less of their part than grey or colour does. With 0.05 there too, training ends 2 nats
# higher in 120 s (docs/results/2026-11-30-method.md).
FIT_NOISE, BERNOULLI_NOISE = 0.05, 1.0


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


class Posterior(nn.Module):
    """1x1 heads over the grid, plus the fit |x_l|^2 - |x_l - b_k|^2 of each part to the place, in float32.

    The fit, of ink (`Grid.ink`), is a convolution with the bank (paper section 3.1). `set_bank` initialises
    it, so that q starts as a soft parse. If places overlap by half or more, a part that fits need not be
    drawn: *whether* then starts at a chance of T / (2 L).
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        grid, self.scale = spec.grid, spec.downscale
        self.grid = grid
        self.trunk = Trunk(grid, spec.image_shape[0], self.scale, spec.encoder_width, spec.dropout)
        self.head = ExactLinear(spec.encoder_width, 1 + spec.parts)
        self.fit = ExactConv2d(
            spec.image_shape[0], spec.parts, grid.patch * self.scale, grid.stride * self.scale
        )
        self.fit_noise = BERNOULLI_NOISE if spec.likelihood == "bernoulli" else FIT_NOISE
        self.fit_draws = 2 * grid.stride > grid.patch
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            if not self.fit_draws:
                chance = min(spec.steps / grid.places, 1.0) / 2
                self.head.bias[0] = math.log(chance / (1 - chance))

    @torch.no_grad()
    def set_bank(self, parts: Tensor) -> None:
        """parts (K, C, P, P): initialises the fit at the squared error that each part removes at a place."""
        parts = self.grid.ink(parts)
        weight = parts.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        assert self.fit.bias is not None
        self.fit.weight.copy_(2 / self.fit_noise * weight / self.scale**2)
        self.fit.bias.copy_(-parts.square().sum((1, 2, 3)) / self.fit_noise)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> features on the grid (B, W, rows, columns)."""
        features: Tensor = self.trunk(self.grid.ink(x))
        return features

    def forward(self, x: Tensor) -> StepLogits:
        """(B, C, H, W) in [0, 1] -> whether (B, L), no where, what (B, L, K)."""
        x = self.grid.ink(x)  # padding with 0 is then background
        logits = self.head(self.trunk(x).flatten(2).transpose(1, 2))
        fit = self.fit(F.pad(x, self.trunk.margin)).flatten(2).transpose(1, 2)
        whether = logits[..., 0]
        if self.fit_draws:
            whether = whether + fit.amax(-1).clamp(-6, 6)
        return StepLogits(whether, None, logits[..., 1:] + fit)
