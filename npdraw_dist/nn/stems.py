"""How the prior embeds the canvas drawn so far (paper section 3.1).

Shapes: B batch, T steps, K parts, C channels, P patch side, h x w canvas, W channels of a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps, render


class ConvStem(nn.Module):
    """The canvas and the map of covered pixels, rendered and convolved.

    It follows the authors' design (paper section 3.1) with layers of our own; `nn.canvas_prior` has theirs.
    It costs T renderings and convolutions per image; `Prior` sums table entries instead, unless `prior.stem`
    is conv. `Prior.set_bank` gives it the parts.
    """

    bank_parts: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, width = spec.image_shape[0], spec.prior.width
        self.grid = spec.grid
        self.register_buffer("bank_parts", torch.zeros(spec.parts, channels, spec.patch, spec.patch))
        self.cells = nn.Conv2d(channels + 1, width, spec.patch, spec.stride)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Linear(width * spec.grid.places, width)

    def forward(self, z: PartSequence) -> Tensor:
        """(B, T, W): the embedding of the canvas before each step."""
        parts = gather_parts(self.bank_parts, z, self.grid)
        covered = paste_steps(_ones(parts, z), z.where, self.grid.of_ink)
        return self.before(paste_steps(parts, z.where, self.grid), covered)

    def before(self, canvas: Tensor, covered: Tensor) -> Tensor:
        """(B, T, W) of canvas (B, T, C, h, w) and covered pixels (B, T, 1, h, w) after each step."""
        seen = torch.cat([self.grid.ink(canvas), covered], 2)
        seen = F.pad(seen, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        return self._embed(seen.flatten(0, 1)).view(*seen.shape[:2], -1)

    def after(self, z: PartSequence) -> Tensor:
        """(B, W): the embedding of the canvas of all of z."""
        canvas = self.grid.ink(render(self.bank_parts, z, self.grid))
        covered = render(torch.ones_like(self.bank_parts[:, :1]), z, self.grid.of_ink)
        return self._embed(torch.cat([canvas, covered], 1))

    def _embed(self, x: Tensor) -> Tensor:
        """Ink and covered pixels (N, C + 1, h, w) -> (N, W)."""
        h = F.silu(self.cells(self.grid.of_ink.pad(x)))
        h = F.silu(h + self.mix(h))
        out: Tensor = self.out(h.flatten(1))
        return out


def _ones(parts: Tensor, z: PartSequence) -> Tensor:
    """(B, T, 1, P, P): 1 where a step draws."""
    return z.whether[..., None, None, None].to(parts.dtype).expand(-1, -1, 1, *parts.shape[-2:])
