"""A convolutional VAE with one layer of Gaussians (Kingma and Welling 2014), and two with a learned prior.

The learned prior is a mixture of posteriors (VampPrior) or a flow. KL(q || p) then has no closed form, so
log p(z) is estimated from the draw, while the entropy of q is exact.
Shapes: B images, N samples, U pseudo-inputs, Z Gaussians, L cells, W channels of features, C channels of the
image, H x W image, Q likelihood parameters per pixel.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.baselines.latents import PriorDraws, gaussian, standard_normal
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.core.noise import Dropout, Noise, dropout_noise
from npdraw_dist.nn.blocks import ExactConvTranspose2d, ExactLinear, ResidualBlock, group_norm, zeroed
from npdraw_dist.nn.generative import Importance
from npdraw_dist.nn.relaxations import Gaussian, categorical_sample

CELL = 4  # residual blocks work on cells of 4 x 4 pixels
MAX_LOG_FACTOR = 2.0  # limit of a coupling layer's log-factor, so that the flow is invertible in float32


def whole_cells(x: Tensor) -> Tensor:
    """Scales images (B, C, H, W) from [0, 1] to [-1, 1], and pads their sides to multiples of CELL."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % CELL, 0, -height % CELL)) * 2 - 1


def encoder_layers(spec: BaselineSpec) -> list[nn.Module]:
    """Layers that map images (B, C, H, W) to features of cells (B, W, rows, columns)."""
    halve = [nn.Conv2d(spec.image_shape[0], spec.width, 4, 2, 1), nn.SiLU()]
    # No SiLU follows the second convolution, since the blocks begin with a norm and a SiLU.
    halve.append(nn.Conv2d(spec.width, spec.width, 4, 2, 1))
    return [*halve, *blocks(spec), group_norm(spec.width), nn.SiLU()]


def last_layer(spec: BaselineSpec, blank: Tensor) -> nn.Module:
    """The last layer of a decoder. Before training, its output is about `blank` (Q,) at every pixel."""
    last = ExactConvTranspose2d(_fine(spec), len(blank), 4, 2, 1)
    assert last.bias is not None
    with torch.no_grad():
        last.bias.copy_(blank)
    return last


def decoder_layers(spec: BaselineSpec, last: nn.Module) -> list[nn.Module]:
    """Layers that map features (B, W, rows, columns) to likelihood parameters of CELL times the size."""
    residual = blocks(spec)
    double = nn.ConvTranspose2d(spec.width, _fine(spec), 4, 2, 1)
    return [*residual, group_norm(spec.width), nn.SiLU(), double, nn.SiLU(), last]


def _fine(spec: BaselineSpec) -> int:
    """The number of channels at half the image's resolution."""
    return max(spec.width // 2, 8)


def blocks(spec: BaselineSpec) -> list[ResidualBlock]:
    """The `baseline.depth` residual blocks of an encoder or a decoder."""
    return [ResidualBlock(spec.width, spec.dropout) for _ in range(spec.depth)]


def cell_centres(rows: int, columns: int, device: torch.device) -> Tensor:
    """The pixel (row, column) at the centre of each cell, (L, 2), row by row."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return CELL * torch.cartesian_prod(row, column) + CELL // 2


class ConvVAE(Baseline):
    """q(z|x) and p(x|z) have residual blocks on cells of 4 x 4 pixels; p(z) is a standard normal."""

    title = "VAE"
    default_latents = 40

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        _, height, width = spec.image_shape
        self.rows, self.columns = -(-height // CELL), -(-width // CELL)
        cells = spec.width * self.rows * self.columns
        self.encoder = nn.Sequential(
            *encoder_layers(spec),
            nn.Flatten(),
            ExactLinear(cells, 2 * spec.latents),
        )
        last = last_layer(spec, self.blank())
        self.decoder = nn.Sequential(
            nn.Linear(spec.latents, cells),
            nn.Unflatten(1, (spec.width, self.rows, self.columns)),
            *decoder_layers(spec, last),
        )

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> means and log standard deviations of q, (B, 2 Z)."""
        return self.encoder(whole_cells(x))

    def decode_latents(self, z: Tensor) -> Tensor:
        """(B, Z) -> likelihood parameters (B, Q, H, W)."""
        _, height, width = self.spec.image_shape
        return self.decoder(z)[..., :height, :width]

    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        q = gaussian(embedded)
        z = q.sample(generator)
        log_p, kl = self.prior_terms(q, z)
        reconstruction = self.likelihood.log_prob(self.decode_latents(z), x)
        return Importance(reconstruction + log_p - q.log_prob(z), reconstruction, {"kl": kl})

    @torch.no_grad()
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        """Swaps as large a share of q's mean as the region has of the image, since latents have no places."""
        of_a, of_b = (gaussian(self.embed(x)).mean for x in (a, b))
        share = inside.float().mean((1, 2))[:, None]  # the region's share of the image, (B, 1)
        taken = torch.arange(self.spec.latents, device=a.device) < self.spec.latents * share
        return self.likelihood.mean(self.decode_latents(torch.where(taken, of_b, of_a)))

    def prior_terms(self, q: Gaussian, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) of a draw z (B, Z) from q, and KL(q || p), each (B,) nats."""
        p = standard_normal(z)
        return p.log_prob(z), q.kl(p)

    def draw_prior(self, n: int, generator: Noise, temperature: float) -> Tensor:
        """Draws z ~ p(z), (N, Z), with standard deviations times `temperature`."""
        prior = standard_normal(torch.zeros(n, self.spec.latents, device=self.device))
        return prior.sample(generator, temperature)

    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        z = self.draw_prior(n, generator, temperature)
        return self.one_step(self.decode_latents(z), {"z": z})


class LearnedPriorVAE(ConvVAE):
    """A VAE with q(z|x) and p(x|z) of `ConvVAE`, whose subclasses define p(z)."""

    @abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """(B, Z) -> log p(z), (B,) nats."""

    def prior_terms(self, q: Gaussian, z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = self.log_prior(z)
        return log_p, -q.entropy() - log_p


class VampVAE(LearnedPriorVAE):
    """p(z) = sum_u w_u q(z|u) with learned w_u and pseudo-inputs u (Tomczak and Welling 2018, eq. 8)."""

    title = "VAE with VampPrior"

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        # Logits of the pixels of each u, with random start values, so that the components differ.
        self.pseudo_inputs = nn.Parameter(torch.randn(spec.pseudo_inputs, *spec.image_shape))
        self.weight_logits = nn.Parameter(torch.zeros(spec.pseudo_inputs))

    def components(self) -> Gaussian:
        """The U components of the mixture, (U, Z)."""
        layers = [layer.noise for layer in self.encoder.modules() if isinstance(layer, Dropout)]
        own = next(filter(None, layers), None)
        with dropout_noise(self.encoder, own and own.shared(len(self.pseudo_inputs))):
            return gaussian(self.embed(torch.sigmoid(self.pseudo_inputs)))

    def log_prior(self, z: Tensor) -> Tensor:
        each = self.components().log_prob(z[:, None])  # (B, U)
        return (each + self.weight_logits.log_softmax(0)).logsumexp(1)

    def draw_prior(self, n: int, generator: Noise, temperature: float) -> Tensor:
        """See `ConvVAE.draw_prior`. `temperature` also divides the logits of the mixture weights."""
        found = self.components()
        chosen = categorical_sample((self.weight_logits / temperature).expand(n, -1), generator)
        return Gaussian(found.mean[chosen], found.log_std[chosen]).sample(generator, temperature)


class Coupling(nn.Module):
    """An affine coupling layer (Dinh et al. 2017, section 3.2). One half of z scales and shifts the other."""

    def __init__(self, latents: int, hidden: int, swapped: bool) -> None:
        super().__init__()
        # If the number of latents is odd, only every other layer changes the middle latent.
        self.fixed, self.swapped = (latents + (not swapped)) // 2, swapped
        first, last = ExactLinear(self.fixed, hidden), ExactLinear(hidden, 2 * (latents - self.fixed))
        self.layers = nn.Sequential(first, nn.SiLU(), zeroed(last))  # the flow begins as the identity

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Z) -> (B, Z), and the logarithm of the Jacobian's absolute determinant, (B,)."""
        fixed, moved = self._halves(z)
        shift, log_factor = self._map(fixed)
        return self._joined(fixed, (moved + shift) * log_factor.exp()), log_factor.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        fixed, moved = self._halves(z)
        shift, log_factor = self._map(fixed)
        return self._joined(fixed, moved * torch.exp(-log_factor) - shift)

    def _map(self, fixed: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = self.layers(fixed).chunk(2, 1)
        return shift, MAX_LOG_FACTOR * torch.tanh(raw / MAX_LOG_FACTOR)

    def _halves(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.flip(1) if self.swapped else z
        return z[:, : self.fixed], z[:, self.fixed :]

    def _joined(self, fixed: Tensor, moved: Tensor) -> Tensor:
        z = torch.cat([fixed, moved], 1)
        return z.flip(1) if self.swapped else z


class FlowVAE(LearnedPriorVAE):
    """A flow p(z) maps z to a standard normal by coupling layers (RealNVP; for a VAE, Chen et al. 2017)."""

    title = "VAE with flow prior"

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        assert spec.latents > 1, "the config refuses a flow that has no halves to couple"
        self.flow = nn.ModuleList(
            Coupling(spec.latents, spec.hidden, swapped=number % 2 == 1) for number in range(spec.flow_layers)
        )

    def log_prior(self, z: Tensor) -> Tensor:
        total = z.new_zeros(len(z))
        for layer in self.flow:
            z, log_determinant = layer(z)
            total = total + log_determinant
        return total + standard_normal(z).log_prob(z)

    def draw_prior(self, n: int, generator: Noise, temperature: float) -> Tensor:
        z = super().draw_prior(n, generator, temperature)
        for layer in reversed(self.flow):
            assert isinstance(layer, Coupling)
            z = layer.inverse(z)
        return z
