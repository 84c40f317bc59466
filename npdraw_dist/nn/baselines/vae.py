"""A convolutional VAE with one layer of Gaussians (Kingma and Welling 2014): the generic baseline.

Shapes: B images, Z Gaussians, W channels, C channels of the image, Q likelihood parameters a pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.baselines.base import Baseline, Gaussian, PriorDraws, standard_normal
from npdraw_dist.nn.blocks import ResidualBlock, group_norm
from npdraw_dist.nn.generative import Importance
from npdraw_dist.nn.precision import ExactConvTranspose2d, ExactLinear

CELL = 4  # the residual blocks work on cells of 4 x 4 pixels


class ConvVAE(Baseline):
    """q(z|x) and p(x|z) of residual blocks on cells of 4 x 4 pixels, p(z) standard normal."""

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        channels, height, width = spec.image_shape
        self.rows, self.columns = -(-height // CELL), -(-width // CELL)
        cells, outputs = spec.width * self.rows * self.columns, self.likelihood.parameters_per_pixel
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, spec.width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(spec.width, spec.width, 4, 2, 1),
            *(ResidualBlock(spec.width) for _ in range(spec.depth)),
            group_norm(spec.width),
            nn.SiLU(),
            nn.Flatten(),
            ExactLinear(cells, 2 * spec.latents),
        )
        fine = max(spec.width // 2, 8)
        last = ExactConvTranspose2d(fine, outputs, 4, 2, 1)
        assert last.bias is not None
        with torch.no_grad():
            last.bias.copy_(self.blank())
        self.decoder = nn.Sequential(
            nn.Linear(spec.latents, cells),
            nn.Unflatten(1, (spec.width, self.rows, self.columns)),
            *(ResidualBlock(spec.width) for _ in range(spec.depth)),
            group_norm(spec.width),
            nn.SiLU(),
            nn.ConvTranspose2d(spec.width, fine, 4, 2, 1),
            nn.SiLU(),
            last,
        )

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> means and log standard deviations of q, (B, 2 Z)."""
        height, width = x.shape[-2:]
        margin = (0, CELL * self.columns - width, 0, CELL * self.rows - height)
        embedded: Tensor = self.encoder(F.pad(x, margin) * 2 - 1)
        return embedded

    def decode_latents(self, z: Tensor) -> Tensor:
        """(B, Z) -> likelihood parameters (B, Q, H, W)."""
        _, height, width = self.spec.image_shape
        output: Tensor = self.decoder(z)[..., :height, :width]
        return output

    def draws(self, x: Tensor, embedded: Tensor, generator: torch.Generator | None) -> Importance:
        q = Gaussian(embedded)
        z = q.sample(generator)
        p = standard_normal(z)
        reconstruction = self.likelihood.log_prob(self.decode_latents(z), x)
        log_w = reconstruction + p.log_prob(z) - q.log_prob(z)
        return Importance(log_w, reconstruction, {"kl": q.kl(p)})

    def generate(self, n: int, generator: torch.Generator | None, temperature: float) -> PriorDraws:
        prior = standard_normal(torch.zeros(n, self.spec.latents, device=self.device))
        z = prior.sample(generator, temperature)
        drawn = torch.ones(n, 1, dtype=torch.bool, device=self.device)
        return PriorDraws(self.decode_latents(z)[None], drawn, self.whole_image(n), {"z": z})
