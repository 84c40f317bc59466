"""The decoder as the authors' released code has it (`vae.decoder strided`).

Written anew from their code's structure, with GroupNorm where they have BatchNorm. It sees the canvas through
strided convolutions only, so that before training its image is grey, not the canvas.
Shapes: B batch, C channels, h x w canvas, H x W image, Q likelihood parameters a pixel.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.core.images import ink
from npdraw_dist.nn.blocks import group_norm
from npdraw_dist.nn.precision import ExactConv2d


class _Residual(nn.Module):
    """relu(x) + layers(relu(x)): the first ReLU of theirs works in place, so that the sum sees it too."""

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
        added: Tensor = self.layers(x)
        return x + added


class StridedDecoder(nn.Module):
    """Canvas (B, C, h, w) in [0, 1] -> likelihood parameters (B, Q, h * upscale, w * upscale).

    Two convolutions of stride 2, `depth` residual blocks, two transposed convolutions, and one of 1x1 pixels.
    A canvas whose sides 4 does not divide is padded below and on the right. The convolutions see its ink, and
    pad with 0: no ink.
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
        output: Tensor = self.layers(F.pad(drawn, (0, -width % 4, 0, -height % 4)))
        return output[..., : height * self.upscale, : width * self.upscale]
