"""Convolutional VAEs whose prior p(z) is learned: a mixture of posteriors (VampPrior), or a flow.

Encoder, decoder and bounds are those of `ConvVAE`: log p(x|z) + log p(z) - log q(z|x) of draws z ~ q.
KL(q || p) has no closed form: log p(z) is that of the draw, the entropy of q is exact.
Shapes: B images, N samples, U pseudo-inputs, Z Gaussians, C channels, H x W image.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.baselines.base import gaussian, standard_normal
from npdraw_dist.nn.baselines.vae import ConvVAE
from npdraw_dist.nn.precision import ExactLinear
from npdraw_dist.nn.relaxations import Gaussian, categorical_sample

MAX_LOG_FACTOR = 2.0  # bounds a coupling layer's factor: the flow stays invertible in float32


class LearnedPriorVAE(ConvVAE):
    """q(z|x) and p(x|z) of `ConvVAE`; a subclass defines p(z)."""

    @abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """(B, Z) -> log p(z), (B,) nats."""

    def prior_terms(self, q: Gaussian, z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = self.log_prior(z)
        return log_p, -q.entropy() - log_p


class VampVAE(LearnedPriorVAE):
    """p(z) = sum_u w_u q(z|u) with learned pseudo-inputs u (Tomczak and Welling 2018, eq. 8).

    The weights w_u are learned too and start at the paper's 1/U. Each micro-batch encodes all pseudo-inputs,
    which costs as much as U images in the encoder.
    """

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        # Logits of their pixels. They start at random, so that the components differ.
        self.pseudo_inputs = nn.Parameter(torch.randn(spec.pseudo_inputs, *spec.image_shape))
        self.weight_logits = nn.Parameter(torch.zeros(spec.pseudo_inputs))

    def components(self) -> Gaussian:
        """The U components of the mixture, (U, Z)."""
        return gaussian(self.embed(torch.sigmoid(self.pseudo_inputs)))

    def log_prior(self, z: Tensor) -> Tensor:
        each = self.components().log_prob(z[:, None])  # (B, U)
        return (each + self.weight_logits.log_softmax(0)).logsumexp(1)

    def draw_prior(self, n: int, generator: torch.Generator | None, temperature: float) -> Tensor:
        """`temperature` divides the logits of the weights too."""
        found = self.components()
        chosen = categorical_sample((self.weight_logits / temperature).expand(n, -1), generator)
        return Gaussian(found.mean[chosen], found.log_std[chosen]).sample(generator, temperature)


class Coupling(nn.Module):
    """An affine coupling layer (Dinh et al. 2017, section 3.2): half of z is scaled and moved by the rest."""

    def __init__(self, latents: int, hidden: int, swapped: bool) -> None:
        super().__init__()
        # If the number is odd, every other layer moves the middle one.
        self.fixed, self.swapped = (latents + (not swapped)) // 2, swapped
        self.layers = nn.Sequential(
            ExactLinear(self.fixed, hidden), nn.SiLU(), ExactLinear(hidden, 2 * (latents - self.fixed))
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # the flow begins as the identity
        nn.init.zeros_(last.bias)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Z) -> (B, Z) and the logarithm of the determinant's size, (B,)."""
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
    """p(z): coupling layers carry z to a standard normal (RealNVP; Chen et al. 2017 for a VAE's prior)."""

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

    def draw_prior(self, n: int, generator: torch.Generator | None, temperature: float) -> Tensor:
        z = super().draw_prior(n, generator, temperature)
        for layer in reversed(self.flow):
            assert isinstance(layer, Coupling)
            z = layer.inverse(z)
        return z
