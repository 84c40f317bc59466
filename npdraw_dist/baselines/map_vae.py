"""A VAE with Gaussian latents z of the image and, given z, Gaussian latents u of each cell.

p(u|z) and q(u|x, z) are networks over the cells, as p(u|canvas) and q(u|x, canvas) are in `nn.appearance`.
Shapes: B images, D Gaussians of a cell, L cells, W channels of features, C channels, H x W image.
"""

import torch
from torch import Tensor, nn

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.baselines.latents import PriorDraws, gaussian, standard_normal
from npdraw_dist.baselines.vae import (
    CELL,
    blocks,
    cell_centres,
    decoder_layers,
    encoder_layers,
    last_layer,
    whole_cells,
)
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.noise import Noise
from npdraw_dist.nn.blocks import ExactConv2d, ExactLinear
from npdraw_dist.nn.generative import Importance, at_centres
from npdraw_dist.nn.relaxations import Gaussian


class MapVAE(Baseline):
    """z ~ N(0, I), u ~ p(u|z) on cells of CELL x CELL pixels, x ~ p(x|z, u)."""

    title = "VAE with a map"
    default_latents = 40

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        _, height, width = spec.image_shape
        rows, columns = -(-height // CELL), -(-width // CELL)
        cells = spec.width * rows * columns
        self.encoder = nn.Sequential(*encoder_layers(spec))
        self.of_image = nn.Sequential(nn.Flatten(), ExactLinear(cells, 2 * spec.latents))
        self.spread = nn.Sequential(
            nn.Linear(spec.latents, cells), nn.Unflatten(1, (spec.width, rows, columns)), *blocks(spec)
        )
        self.prior_of_cells = nn.Sequential(nn.SiLU(), ExactConv2d(spec.width, 2 * spec.local, 1))
        self.posterior_of_cells = nn.Sequential(
            nn.Conv2d(2 * spec.width, spec.width, 1),
            nn.SiLU(),
            ExactConv2d(spec.width, 2 * spec.local, 1),
        )
        self.added = nn.Conv2d(spec.local, spec.width, 1)
        self.decoder = nn.Sequential(*decoder_layers(spec, last_layer(spec, self.blank())))
        self.size = rows, columns

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> features of the cells (B, W, rows, columns)."""
        return self.encoder(whole_cells(x))

    def decode_latents(self, spread: Tensor, u: Tensor) -> Tensor:
        """Features of z (B, W, rows, columns), u (B, L, D) -> likelihood parameters (B, Q, H, W)."""
        _, height, width = self.spec.image_shape
        cells = spread + self.added(u.transpose(1, 2).unflatten(2, self.size))
        return self.decoder(cells)[..., :height, :width]

    def _posterior_of_cells(self, embedded: Tensor, spread: Tensor) -> Gaussian:
        """Features of x and of z (B, W, rows, columns) -> q(u|x, z), (B, L, D)."""
        return _of_cells(self.posterior_of_cells(torch.cat([embedded, spread], 1)))

    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        q = gaussian(self.of_image(embedded))
        z = q.sample(generator)
        p, spread = standard_normal(z), self.spread(z)
        p_cells = _of_cells(self.prior_of_cells(spread))
        q_cells = self._posterior_of_cells(embedded, spread)
        u = q_cells.sample(generator)
        reconstruction = self.likelihood.log_prob(self.decode_latents(spread, u), x)
        of_cells = (p_cells.log_prob(u) - q_cells.log_prob(u)).sum(1)
        log_w = reconstruction + p.log_prob(z) - q.log_prob(z) + of_cells
        return Importance(log_w, reconstruction, {"kl": q.kl(p), "kl_appearance": q_cells.kl(p_cells).sum(1)})

    @torch.no_grad()
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        """Swaps the Gaussians of the region's cells; the Gaussians of the image are not swapped."""
        taken = at_centres(inside, cell_centres(*self.size, inside.device))
        of_a, of_b = self.embed(a), self.embed(b)
        spread = self.spread(gaussian(self.of_image(of_a)).mean)
        spread_b = self.spread(gaussian(self.of_image(of_b)).mean)
        u_a = self._posterior_of_cells(of_a, spread).mean
        u_b = self._posterior_of_cells(of_b, spread_b).mean
        return self.likelihood.mean(self.decode_latents(spread, torch.where(taken[..., None], u_b, u_a)))

    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        zeros = torch.zeros(n, self.spec.latents, device=self.device)
        z = standard_normal(zeros).sample(generator, temperature)
        spread = self.spread(z)
        u = _of_cells(self.prior_of_cells(spread)).sample(generator, temperature)
        return self.one_step(self.decode_latents(spread, u), {"z": z, "u": u})


def _of_cells(raw: Tensor) -> Gaussian:
    """Network outputs (B, 2 D, rows, columns) -> Gaussians of the cells, (B, L, D)."""
    return gaussian(raw.flatten(2).transpose(1, 2))
