"""The posterior q(z|x) = prod_t q(whether_t|x) q(where_t|x) q(what_t|x) (paper section 3.2).

Its features are on the grid of places: one convolution cuts the image at the places, and residual blocks mix
neighbours. In `aligned` order each cell gives the logits of its own step; in the other orders T learned
queries attend to the cells. Shapes: B batch, T steps, L places, K parts, W channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.nn.blocks import ResidualBlock, group_norm
from npdraw_dist.nn.steps import StepLogits

# A part whose squared error (summed over its pixels) is larger by this has 1/e of the best one's chance.
FIT_NOISE = 0.05


class Trunk(nn.Module):
    """Image (B, C, H, W) -> features on the grid (B, W, rows, columns)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        grid, scale, width = spec.grid, spec.downscale, spec.encoder_width
        self.margin = (
            0,
            (grid.padded_width - grid.width) * scale,
            0,
            (grid.padded_height - grid.height) * scale,
        )
        self.cut = nn.Conv2d(spec.image_shape[0], width, grid.patch * scale, grid.stride * scale)
        self.place = nn.Parameter(torch.randn(width, grid.rows, grid.columns) * 0.02)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(spec.encoder_depth)))
        self.norm = group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(F.pad(x, self.margin)) + self.place
        return F.silu(self.norm(self.blocks(h)))


class AlignedPosterior(nn.Module):
    """Step t is place t: 1x1 heads over the grid, plus a term for how well each part fits the place.

    The fit |x_l|^2 - |x_l - b_k|^2 is linear in the image: a convolution with the bank, as in the parser
    (paper section 3.1). `set_bank` initialises it so, and q starts as a soft parse instead of uniform.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        grid, self.scale = spec.grid, spec.downscale
        self.trunk = Trunk(spec)
        self.head = nn.Linear(spec.encoder_width, 1 + spec.parts)
        self.fit = nn.Conv2d(
            spec.image_shape[0], spec.parts, grid.patch * self.scale, grid.stride * self.scale
        )
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    @torch.no_grad()
    def set_bank(self, parts: Tensor) -> None:
        """parts (K, C, P, P): initialises the fit at the squared error that each part removes at a place."""
        weight = parts.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        assert self.fit.bias is not None
        self.fit.weight.copy_(2 / FIT_NOISE * weight / self.scale**2)
        self.fit.bias.copy_(-parts.square().sum((1, 2, 3)) / FIT_NOISE)

    def forward(self, x: Tensor) -> StepLogits:
        """(B, C, H, W) in [0, 1] -> whether (B, L), no where, what (B, L, K)."""
        logits = self.head(self.trunk(x).flatten(2).transpose(1, 2))
        fit = self.fit(F.pad(x, self.trunk.margin)).flatten(2).transpose(1, 2)
        whether = logits[..., 0] + fit.amax(-1).clamp(-6, 6)
        return StepLogits(whether, None, logits[..., 1:] + fit)


class SlotPosterior(nn.Module):
    """T queries attend to the grid: *where* is the attention itself, *what* is read at these places."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.encoder_width
        self.trunk = Trunk(spec)
        self.summary = nn.Linear(width, width)
        self.query = nn.Parameter(torch.randn(spec.steps, width) * width**-0.5)
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.whether, self.what = nn.Linear(width, 1), nn.Linear(width, spec.parts)

    def set_bank(self, parts: Tensor) -> None:
        """Does nothing: no weight here is initialised from the bank."""

    def forward(self, x: Tensor) -> StepLogits:
        """(B, C, H, W) in [0, 1] -> whether (B, T), where (B, T, L), what (B, T, K)."""
        cells = self.trunk(x).flatten(2).transpose(1, 2)  # (B, L, W)
        # What a step draws depends on the other places, so the queries first see all cells.
        slots = self.query + self.summary(cells.mean(1, keepdim=True))
        slots = slots + F.scaled_dot_product_attention(slots, cells, cells)
        slots = slots + self.mix(slots)
        where = slots @ self.key(cells).transpose(1, 2) * cells.shape[-1] ** -0.5
        seen = where.softmax(-1) @ self.value(cells)
        state = self.head(seen + slots)
        return StepLogits(self.whether(state)[..., 0], where, self.what(state))


def make_posterior(spec: ModelSpec) -> AlignedPosterior | SlotPosterior:
    return AlignedPosterior(spec) if spec.aligned else SlotPosterior(spec)
