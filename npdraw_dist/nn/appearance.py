"""A Gaussian latent u for what parts cannot say, such as slant and thickness of the strokes.

It is no part of the paper. p(u) = N(0, I); the decoder sees the canvas and u; q(u|x, canvas) has a diagonal
covariance. u = 0 is the canvas alone.
Shapes: B batch, D latents, C channels, H x W image, h x w canvas, W channels of the decoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.nn.precision import ExactLinear, at_least_float32

LOG_STD = (-8.0, 4.0)  # range of the logarithm of q's standard deviation
COARSE = 8  # channels of the coarse map of features that u is turned into


@dataclass(frozen=True)
class Gaussian:
    """q(u|x, canvas): mean and log_std, each (B, D)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """u (B, D), with gradients in mean and log_std."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def kl(self) -> Tensor:
        """KL(q || p), (B,) nats."""
        squares = self.mean.square() + (2 * self.log_std).exp()
        return ((squares - 1) / 2 - self.log_std).sum(-1)

    def log_ratio(self, u: Tensor) -> Tensor:
        """log q(u|x, canvas) - log p(u), (B,) nats."""
        noise = (u - self.mean) * (-self.log_std).exp()
        return ((u.square() - noise.square()) / 2 - self.log_std).sum(-1)


class Appearance(nn.Module):
    """q(u|x, canvas), and the features that u adds to the decoder's at half the canvas's resolution.

    The last layer of the features is zero at initialisation: training starts from the canvas alone.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.latents, self.scale, width = spec.latents, spec.downscale, spec.latent_width
        self.background = spec.grid.background
        channels, height, width_px = spec.image_shape
        self.size = -(-height // (2 * self.scale)), -(-width_px // (2 * self.scale))
        self.coarse_size = -(-self.size[0] // 2), -(-self.size[1] // 2)
        small = -(-self.coarse_size[0] // 2) * -(-self.coarse_size[1] // 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(4 * channels * (self.scale**2 + 1), width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            ExactLinear(width * small, 2 * self.latents),
        )
        self.spread = nn.Linear(self.latents, COARSE * self.coarse_size[0] * self.coarse_size[1])
        self.out = nn.Conv2d(COARSE, spec.decoder_width, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def infer(self, x: Tensor, canvas: Tensor) -> Gaussian:
        """x (B, C, H, W), canvas (B, C, h, w) -> q(u|x, canvas)."""
        seen = torch.cat([F.pixel_unshuffle(x, self.scale), canvas], 1)
        odd = (0, seen.shape[-1] % 2, 0, seen.shape[-2] % 2)
        seen = F.pad(seen, odd, value=self.background) * 2 - 1
        mean, log_std = at_least_float32(self.encoder(F.pixel_unshuffle(seen, 2))).chunk(2, -1)
        return Gaussian(mean, log_std.clamp(*LOG_STD))

    def features(self, u: Tensor) -> Tensor:
        """u (B, D) -> (B, W, h / 2, w / 2), rounded up."""
        coarse = F.silu(self.spread(u)).view(-1, COARSE, *self.coarse_size)
        added: Tensor = self.out(F.interpolate(coarse, size=self.size))
        return added
