"""The decoder p(x|canvas), which convolves at half the canvas's resolution (paper section 3.2).

Shapes: B batch, C channels, h x w canvas, H x W image, Q likelihood parameters per pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.nn.blocks import ExactConv2d, ResidualBlock, group_norm
from npdraw_dist.nn.likelihoods import CanvasStart


class Decoder(nn.Module):
    """Canvas (B, C, h, w) in [0, 1] -> likelihood parameters (B, Q, h * upscale, w * upscale).

    Most layers work on cells of 2x2 pixels. The last layer also takes the canvas as input, and `start`
    initialises this layer so that before training the image resembles the canvas. background: the value that
    pads a canvas with an odd side.
    """

    def __init__(
        self,
        start: CanvasStart,
        width: int,
        depth: int,
        upscale: int,
        background: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.upscale, self.background = upscale, background
        outputs, channels = start.weight.shape
        self.inlet = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout) for _ in range(depth)))
        fine = max(width // 4, 8)
        self.outlet = nn.Sequential(
            group_norm(width),
            nn.SiLU(),
            nn.Conv2d(width, fine * (2 * upscale) ** 2, 1),
            nn.PixelShuffle(2 * upscale),
        )
        self.last = ExactConv2d(fine + channels, outputs, 3, padding=1)
        nn.init.normal_(self.last.weight, std=0.02)
        assert self.last.bias is not None
        with torch.no_grad():
            self.last.weight[:, fine:, 1, 1] = start.weight
            self.last.bias.copy_(start.bias)

    def forward(self, canvas: Tensor, added: Tensor | None = None) -> Tensor:
        """Decodes a canvas. added: features of more details, (B, width, h / 2, w / 2), sides rounded up."""
        height, width = canvas.shape[-2:]
        even = F.pad(canvas, (0, width % 2, 0, height % 2), value=self.background) * 2 - 1
        h = self.inlet(F.pixel_unshuffle(even, 2))
        h = self.outlet(self.blocks(h if added is None else h + added))
        h = F.silu(h[..., : height * self.upscale, : width * self.upscale])
        near = canvas * 2 - 1
        if self.upscale > 1:
            near = F.interpolate(near, scale_factor=float(self.upscale), mode="bilinear")
        return self.last(torch.cat([h, near], 1))
