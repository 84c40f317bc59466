"""The prior as the authors' released code has it: a Transformer over canvases (`prior.stem strided`).

Written anew from their code's structure. One departure: a step that draws nothing covers nothing, while in
their VAE training it covers its *where*.
Shapes: B batch, T steps, L places, K parts, C channels, h x w canvas, W channels of a token.
"""

from collections.abc import Generator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec, PriorSpec
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps, render
from npdraw_dist.nn.blocks import Dropout, TransformerBlock
from npdraw_dist.nn.precision import ExactLinear
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.steps import StepLogits

CHANNELS = 16  # of the two convolutions


class PlainBlock(TransformerBlock):
    """A block of a vision Transformer: no bias in attention, torch's initial weights, dropout in the MLP."""

    def __init__(self, settings: PriorSpec) -> None:
        super().__init__(settings)
        width, attended = settings.width, settings.attention_heads * settings.head_width
        self.qkv = nn.Linear(width, 3 * attended, bias=False)
        self.out = nn.Linear(attended, width)
        first, last = nn.Linear(width, settings.mlp), nn.Linear(settings.mlp, width)
        self.mlp = nn.Sequential(first, nn.GELU(), Dropout(settings.dropout), last)


class CanvasPrior(StepPrior):
    """p(z), whose state before a step is a function of the canvases and coverage maps of the steps before it.

    Two convolutions, the first of stride 2, and a linear layer make a token of each canvas. A learned token
    is ahead of them. Each of *whether*, *where* and *what* has a head of two layers.
    """

    ahead: ClassVar[int] = 1
    bank_parts: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        prior, width, channels, grid = spec.prior, spec.prior.width, spec.image_shape[0], spec.grid
        self.grid = grid
        self.register_buffer("bank_parts", torch.zeros(spec.parts, channels, spec.patch, spec.patch))
        half = -(-grid.height // 2) * -(-grid.width // 2)
        self.stem = nn.Sequential(
            nn.Conv2d(channels + 1, CHANNELS, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 1),
            nn.Flatten(),
            nn.Linear(CHANNELS * half, width),
        )
        self.first = nn.Parameter(torch.randn(width))
        self.position = nn.Parameter(torch.randn(1 + spec.steps, width))
        self.dropout = Dropout(prior.dropout)
        self.blocks = nn.ModuleList(PlainBlock(prior) for _ in range(prior.depth))
        self.norm = nn.Identity()
        self.whether_head = two_layers(width, 1)
        self.where_head = None if spec.where_given else two_layers(width, self.places)
        self.what_head = two_layers(width, self.parts)

    def set_bank(self, parts: Tensor) -> None:
        self.bank_parts.copy_(parts)

    def forward(self, z: PartSequence) -> StepLogits:
        canvases = paste_steps(gather_parts(self.bank_parts, z, self.grid), z.where, self.grid)
        return self.given(canvases, z)

    def given(self, canvases: Tensor, z: PartSequence) -> StepLogits:
        """Logits given the canvas after each step, (B, T, C, h, w). Of z only the covered places count.

        Relaxed training gives mixtures of parts. The logits of step t depend on the steps before it.
        """
        area = z.whether[:, :, None, None, None].to(canvases.dtype)
        area = area.expand(-1, -1, 1, self.grid.patch, self.grid.patch)
        seen = torch.cat([self.grid.ink(canvases), paste_steps(area, z.where, self.grid.of_ink)], 2)
        seen = F.pad(seen, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        token = self.stem(seen.flatten(0, 1)).view(*seen.shape[:2], -1)
        x = torch.cat([self.first.expand(len(token), 1, -1), token], 1) + self.position
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.logits(x[:, 1:], z.where)

    def tokens(self, z: PartSequence) -> Generator[Tensor, Tensor | None, None]:
        yield (self.first + self.position[0]).expand(len(z), -1)
        for t in range(self.steps):
            canvas = self.grid.ink(render(self.bank_parts, z, self.grid))
            covered = render(torch.ones_like(self.bank_parts[:, :1]), z, self.grid.of_ink)
            yield self.stem(torch.cat([canvas, covered], 1)) + self.position[1 + t]

    def _what(self, h: Tensor, where: Tensor) -> Tensor:
        logits: Tensor = self.what_head(h)
        return logits


def two_layers(width: int, outputs: int) -> nn.Sequential:
    """A head: its outputs are logits."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), ExactLinear(width, outputs))
