"""Prior, posterior and decoder of the authors' released code (kind `authors`), rewritten from its structure.

There are two differences. GroupNorm replaces BatchNorm, whose output for an image depends on the batch. A
step that draws nothing covers nothing; in the authors' VAE training, such a step covers the place *where*.
Shapes: B batch, T steps, L places, K parts, C channels, h x w canvas, H x W image, W channels of a token, Q
likelihood parameters per pixel.
"""

from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec, PriorSpec
from npdraw_dist.core.images import ink
from npdraw_dist.core.noise import Dropout, Noise
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps, render
from npdraw_dist.nn.blocks import (
    ExactConv2d,
    ExactLinear,
    TransformerBlock,
    at_least_float32,
    exactly,
    group_norm,
)
from npdraw_dist.nn.posterior import StepPosterior
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import AlignedLayout, StepLogits

CHANNELS = 16  # channels of the prior's two convolutions
HALVINGS = 4  # number of convolutions of stride 2 in the posterior
SIDE = 2  # side of the posterior's last feature map, for images of 28 pixels


def two_layers(width: int, outputs: int) -> nn.Sequential:
    """A head with two linear layers, which computes logits."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), ExactLinear(width, outputs))


class PlainBlock(TransformerBlock):
    """A vision Transformer block with torch's initial weights, no bias in q, k and v, dropout in the MLP."""

    def __init__(self, settings: PriorSpec) -> None:
        super().__init__(settings)
        width, attended = settings.width, settings.attention_heads * settings.head_width
        self.qkv = nn.Linear(width, 3 * attended, bias=False)
        self.out = nn.Linear(attended, width)
        first, last = nn.Linear(width, settings.mlp), nn.Linear(settings.mlp, width)
        self.mlp = nn.Sequential(first, nn.GELU(), Dropout(settings.dropout), last)


class CanvasPrior(StepPrior):
    """p(z), whose state is a function of the canvases and coverage maps drawn so far."""

    ahead = 1
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
        self.where_head = two_layers(width, self.places)
        self.what_head = two_layers(width, self.parts)

    def set_bank(self, parts: Tensor) -> None:
        self.bank_parts.copy_(parts)

    def forward(self, z: PartSequence, condition: Tensor | None = None) -> StepLogits:
        canvases = paste_steps(gather_parts(self.bank_parts, z, self.grid), z.where, self.grid)
        return self.given(canvases, z)

    def given(self, canvases: Tensor, z: PartSequence) -> StepLogits:
        """Logits of each step from z and the canvas after each step, (B, T, C, h, w), which may mix parts."""
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

    def tokens(
        self, z: PartSequence, condition: Tensor | None = None
    ) -> Generator[Tensor, Tensor | None, None]:
        yield (self.first + self.position[0]).expand(len(z), -1)
        for t in range(self.steps):
            canvas = self.grid.ink(render(self.bank_parts, z, self.grid))
            covered = render(torch.ones_like(self.bank_parts[:, :1]), z, self.grid.of_ink)
            yield self.stem(torch.cat([canvas, covered], 1)) + self.position[1 + t]

    def what_logits(self, h: Tensor, where: Tensor) -> Tensor:
        return self.what_head(h)


class FlatTrunk(nn.Module):
    """Ink (B, C, H, W) -> a vector (B, W), in float32, since bfloat16 would change signs before the ReLUs."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, *[width] * (HALVINGS - 1)):
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), group_norm(width), nn.ReLU()]
        self.halve = nn.Sequential(*layers)
        self.out = nn.Linear(SIDE * SIDE * width, width)

    def forward(self, x: Tensor) -> Tensor:
        with exactly(x):
            h = self.halve(at_least_float32(x))
            if h.shape[-2:] != (SIDE, SIDE):
                h = F.interpolate(h, size=(SIDE, SIDE), mode="bilinear")
            return F.relu(self.out(h.flatten(1)))


class FlatPosterior(StepPosterior):
    """q(z|x) from one vector for all steps, with heads for the *whether*, *where* and *what* of each step."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, self.steps, self.grid = spec.encoder_width, spec.steps, spec.grid
        self.trunk = FlatTrunk(spec.image_shape[0], width)
        self.whether = ExactLinear(width, spec.steps)
        self.where = two_layers(width, spec.steps * spec.grid.places)
        self.what = two_layers(width, spec.steps * spec.parts)

    def set_bank(self, parts: Tensor) -> None:
        """Does nothing, since this network does not use the parts."""

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, W)."""
        return self.trunk(self.grid.ink(x))  # the trunk's convolutions pad with 0, the background's ink

    def forward(self, x: Tensor) -> StepLogits:
        """Images (B, C, H, W) in [0, 1] -> logits of whether (B, T), where (B, T, L) and what (B, T, K)."""
        h, shape = self.features(x), (len(x), self.steps, -1)
        where = self.where(h).view(shape)
        return StepLogits(self.whether(h), where, self.what(h).view(shape))


class PlacedLayout(AlignedLayout):
    """A layout of T = L steps, each at any place, even one drawn before, so q factorises over steps."""

    def sample(self, q: StepLogits, bank: Tensor, generator: Noise) -> PartSequence:
        assert q.where is not None
        z = super().sample(q, bank, generator)
        return PartSequence(z.whether, categorical_sample(q.where, generator), z.what)

    def likeliest(self, q: StepLogits, bank: Tensor) -> PartSequence:
        assert q.where is not None
        return PartSequence(q.whether > 0, q.where.argmax(-1), q.what.argmax(-1))


class _Residual(nn.Module):
    """relu(x) + layers(relu(x)). The authors' first ReLU works in place, so it changes both terms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            group_norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            group_norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x + self.layers(x)


class StridedDecoder(nn.Module):
    """Canvas (B, C, h, w) in [0, 1] -> likelihood parameters (B, Q, h * upscale, w * upscale).

    The canvas enters only through strided convolutions, so before training the image is grey. The input of
    the convolutions is ink, padded with 0 (background), at the bottom and right also to multiples of 4.
    """

    def __init__(
        self, channels: int, outputs: int, width: int, depth: int, upscale: int, background: float = 0.0
    ) -> None:
        super().__init__()
        self.upscale, self.background = upscale, background
        layers: list[nn.Module] = []
        for inputs in (channels, width):
            layers += [nn.Conv2d(inputs, width, 4, 2, 1, bias=False), group_norm(width), nn.ReLU()]
        layers += [_Residual(width) for _ in range(depth)]
        for _ in range(2):
            layers += [nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False), group_norm(width), nn.ReLU()]
        if upscale > 1:
            layers += [nn.ConvTranspose2d(width, width, upscale, upscale), group_norm(width), nn.ReLU()]
            layers.append(nn.Conv2d(width, width, 1))
        self.layers = nn.Sequential(*layers, ExactConv2d(width, outputs, 1))

    def forward(self, canvas: Tensor) -> Tensor:
        height, width = canvas.shape[-2:]
        drawn = ink(canvas, self.background)
        output = self.layers(F.pad(drawn, (0, -width % 4, 0, -height % 4)))
        return output[..., : height * self.upscale, : width * self.upscale]
