"""A convolutional VAE with one layer of Gaussians (Kingma and Welling 2014): the generic baseline.

Shapes: B images, Z Gaussians, W channels, C channels of the image, Q likelihood parameters a pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.baselines.base import Baseline, PriorDraws, gaussian, standard_normal
from npdraw_dist.nn.blocks import ResidualBlock, group_norm
from npdraw_dist.nn.generative import Importance
from npdraw_dist.nn.precision import ExactConvTranspose2d, ExactLinear
from npdraw_dist.nn.relaxations import Gaussian

CELL = 4  # the residual blocks work on cells of 4 x 4 pixels


def whole_cells(x: Tensor, cell: int) -> Tensor:
    """Images (B, C, H, W) in [0, 1] -> in [-1, 1], their sides padded to multiples of `cell`."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % cell, 0, -height % cell)) * 2 - 1


def encoder_layers(spec: BaselineSpec, cell: int) -> list[nn.Module]:
    """Images (B, C, H, W) -> features (B, W, H / cell, W / cell). cell: a power of 2."""
    layers: list[nn.Module] = []
    inputs = spec.image_shape[0]
    for _ in range(cell.bit_length() - 1):
        layers += [nn.Conv2d(inputs, spec.width, 4, 2, 1), nn.SiLU()]
        inputs = spec.width
    # The blocks begin with a norm and a SiLU of their own.
    return [*layers[:-1], *_blocks(spec), group_norm(spec.width), nn.SiLU()]


def last_layer(spec: BaselineSpec, blank: Tensor) -> nn.Module:
    """The last of `decoder_layers`, whose output starts at about `blank` (Q,)."""
    last = ExactConvTranspose2d(_fine(spec), len(blank), 4, 2, 1)
    assert last.bias is not None
    with torch.no_grad():
        last.bias.copy_(blank)
    return last


def decoder_layers(spec: BaselineSpec, cell: int, last: nn.Module) -> list[nn.Module]:
    """Features (B, W, rows, columns) -> likelihood parameters, `cell` times as wide."""
    blocks, fine = _blocks(spec), _fine(spec)
    doubled: list[nn.Module] = []
    for number in reversed(range(cell.bit_length() - 2)):
        outputs = fine if number == 0 else spec.width
        doubled += [nn.ConvTranspose2d(spec.width, outputs, 4, 2, 1), nn.SiLU()]
    if not doubled:
        doubled = [nn.Conv2d(spec.width, fine, 3, padding=1), nn.SiLU()]
    return [*blocks, group_norm(spec.width), nn.SiLU(), *doubled, last]


def _fine(spec: BaselineSpec) -> int:
    """Channels at half the image's side."""
    return max(spec.width // 2, 8)


def _blocks(spec: BaselineSpec) -> list[ResidualBlock]:
    return [ResidualBlock(spec.width, spec.dropout) for _ in range(spec.depth)]


class ConvVAE(Baseline):
    """q(z|x) and p(x|z) of residual blocks on cells of 4 x 4 pixels, p(z) standard normal."""

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        _, height, width = spec.image_shape
        self.rows, self.columns = -(-height // CELL), -(-width // CELL)
        cells = spec.width * self.rows * self.columns
        self.encoder = nn.Sequential(
            *encoder_layers(spec, CELL),
            nn.Flatten(),
            ExactLinear(cells, 2 * spec.latents),
        )
        last = last_layer(spec, self.blank())
        self.decoder = nn.Sequential(
            nn.Linear(spec.latents, cells),
            nn.Unflatten(1, (spec.width, self.rows, self.columns)),
            *decoder_layers(spec, CELL, last),
        )

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> means and log standard deviations of q, (B, 2 Z)."""
        embedded: Tensor = self.encoder(whole_cells(x, CELL))
        return embedded

    def decode_latents(self, z: Tensor) -> Tensor:
        """(B, Z) -> likelihood parameters (B, Q, H, W)."""
        _, height, width = self.spec.image_shape
        output: Tensor = self.decoder(z)[..., :height, :width]
        return output

    def draws(self, x: Tensor, embedded: Tensor, generator: torch.Generator | None) -> Importance:
        q = gaussian(embedded)
        z = q.sample(generator)
        log_p, kl = self.prior_terms(q, z)
        reconstruction = self.likelihood.log_prob(self.decode_latents(z), x)
        return Importance(reconstruction + log_p - q.log_prob(z), reconstruction, {"kl": kl})

    def prior_terms(self, q: Gaussian, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) of the draw z (B, Z) of q, and KL(q || p), (B,) nats each."""
        p = standard_normal(z)
        return p.log_prob(z), q.kl(p)

    def draw_prior(self, n: int, generator: torch.Generator | None, temperature: float) -> Tensor:
        """(N, Z): z ~ p(z), standard deviations times `temperature`."""
        prior = standard_normal(torch.zeros(n, self.spec.latents, device=self.device))
        return prior.sample(generator, temperature)

    def generate(self, n: int, generator: torch.Generator | None, temperature: float) -> PriorDraws:
        z = self.draw_prior(n, generator, temperature)
        drawn = torch.ones(n, 1, dtype=torch.bool, device=self.device)
        return PriorDraws(self.decode_latents(z)[None], drawn, self.whole_image(n), {"z": z})
