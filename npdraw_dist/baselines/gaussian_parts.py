"""NP-DRAW without its bank. *What* is Gaussian, and a network maps it to the pixels of a part.

As in NP-DRAW with aligned order, *whether* is a choice at each place. Trunk, paste, decoder and training
phases are also NP-DRAW's. There is no parse, and therefore no stage that trains the prior on parses.
Shapes: k draws, B images, N samples, L places, D Gaussians of a part, C channels, P patch side, W channels of
a token, h x w canvas.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.baselines.discrete import DiscreteBaseline, HardDraws, SequencePrior
from npdraw_dist.baselines.latents import PriorDraws, gaussian
from npdraw_dist.config.spec import BaselineSpec, PriorSpec
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.paste import paste_aligned
from npdraw_dist.nn.blocks import ExactLinear
from npdraw_dist.nn.decoder import Decoder
from npdraw_dist.nn.generative import Importance, at_centres
from npdraw_dist.nn.posterior import Trunk
from npdraw_dist.nn.relaxations import Gaussian, bernoulli_sample, binary_concrete, kl_bernoulli
from npdraw_dist.nn.tables import PLACE


class PartPrior(SequencePrior):
    """p(z) = prod_l p(whether_l | z_<l) p(what_l | z_<l); *what* counts only where a part is drawn."""

    def __init__(self, settings: PriorSpec, places: int, latents: int) -> None:
        super().__init__(settings, places)
        width = settings.width
        self.what = nn.Sequential(nn.Linear(latents, width), nn.GELU(), nn.Linear(width, width))
        self.place = nn.Parameter(1 + PLACE * torch.randn(places, width))
        self.head = ExactLinear(width, 1 + 2 * latents)

    def added(self, whether: Tensor, what: Tensor, place: Tensor) -> Tensor:
        """whether (...), what (..., D), place (..., W) -> the vectors (..., W) that parts add to the sum."""
        return self.what(what) * place * whether[..., None]

    def forward(self, whether: Tensor, what: Tensor) -> tuple[Tensor, Gaussian]:
        """whether (B, L) in [0, 1], what (B, L, D) -> logits of whether (B, L) and p(what) of each place."""
        return split(self.head(self.states(self.added(whether, what, self.place))))

    @torch.no_grad()
    def sample(self, n: int, generator: Noise, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Samples *whether* (n, L) and *what* (n, L, D).

        temperature: divides logits, multiplies standard deviations.
        """
        walk, found = self.walk(n), list[tuple[Tensor, Tensor]]()
        h = next(walk)
        for place in range(self.places):
            logits, p = split(self.head(h))
            whether = bernoulli_sample(logits / temperature, generator)
            found.append((whether, p.sample(generator, temperature)))
            if place + 1 < self.places:
                h = walk.send(self.added(*found[-1], self.place[place]))
        drawn, what = zip(*found, strict=True)
        return torch.stack(drawn, 1), torch.stack(what, 1)


def split(raw: Tensor) -> tuple[Tensor, Gaussian]:
    """A head's outputs (..., 1 + 2 D) -> logits of *whether* (...), Gaussian of *what* (..., D)."""
    return raw[..., 0], gaussian(raw[..., 1:])


class GaussianParts(DiscreteBaseline):
    """A model whose q draws *whether* and *what* of each place independently, given the image."""

    title = "Gaussian parts"
    default_latents = 8
    has_sequence = True
    has_places = True

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        assert spec.prior is not None
        assert spec.grid is not None
        self.grid, channels = spec.grid.of_canvas(spec.image_shape), spec.image_shape[0]
        self.trunk = Trunk(self.grid, channels, spec.grid.downscale, spec.width, spec.dropout)
        self.head = ExactLinear(spec.width, 1 + 2 * spec.latents)
        pixels = channels * self.grid.patch**2
        self.pixels = nn.Sequential(
            nn.Linear(spec.latents, spec.hidden), nn.GELU(), nn.Linear(spec.hidden, pixels)
        )
        self.decoder = Decoder(
            self.likelihood.canvas_start(),
            spec.width,
            spec.depth,
            spec.grid.downscale,
            self.grid.background,
            spec.dropout,
        )
        self.prior = PartPrior(spec.prior, self.grid.places, spec.latents)

    @property
    def blank_pixel(self) -> float:
        return self.grid.background

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits of whether, means and log standard deviations of what, (B, L, 1 + 2 D)."""
        return self.head(self.trunk(self.grid.ink(x)).flatten(2).transpose(1, 2))

    def decode_parts(self, gate: Tensor, what: Tensor) -> Tensor:
        """gate (B, L) in [0, 1], what (B, L, D) -> likelihood parameters (B, Q, H, W)."""
        ink = torch.sigmoid(self.pixels(what)) * gate[..., None]
        side = self.grid.patch
        parts = ink.unflatten(2, (self.spec.image_shape[0], side, side))
        return self.decoder(self.grid.ink(paste_aligned(parts, self.grid.of_ink)))

    def _kl(self, logits: Tensor, q: Gaussian, whether: Tensor, what: Tensor) -> dict[str, Tensor]:
        """Terms of the KL at each place, (B, L), averaged over the place's choices, given earlier draws."""
        prior, p = self.prior(whether, what)
        return {
            "kl_whether": kl_bernoulli(logits, prior),
            "kl_what": torch.sigmoid(logits) * q.kl(p),
        }

    @torch.no_grad()
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        """Swaps the most likely parts at the places of the region."""
        assert self.spec.grid is not None
        taken = at_centres(inside, self.grid.centres(self.spec.grid.downscale).to(inside.device))
        logits, q = split(torch.where(taken[..., None], self.embed(b), self.embed(a)))
        return self.likelihood.mean(self.decode_parts((logits > 0).float(), q.mean))

    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        logits, q = split(embedded)
        whether, what = bernoulli_sample(logits, generator), q.sample(generator)
        reconstruction = self.likelihood.log_prob(self.decode_parts(whether, what), x)
        prior, p = self.prior(whether, what)
        log_ratio = bernoulli_log_prob(prior, whether) - bernoulli_log_prob(logits, whether)
        log_ratio = log_ratio + whether * (p.log_prob(what) - q.log_prob(what))
        parts = {name: value.sum(1) for name, value in self._kl(logits, q, whether, what).items()}
        return Importance(reconstruction + log_ratio.sum(1), reconstruction, parts)

    def relaxed_parts(self, x: Tensor, tau: float, generator: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        logits, q = split(self.embed(x))
        gate, what = binary_concrete(logits, tau, generator), q.sample(generator)
        reconstruction = self.likelihood.log_prob(self.decode_parts(gate, what), x)
        whether = (gate.detach() > 0.5).to(gate.dtype)
        parts = self._kl(logits, q, whether, what)
        return reconstruction, {name: value.sum(1) for name, value in parts.items()}

    def hard_draws(self, x: Tensor, k: int, generator: Noise) -> HardDraws:
        logits, q = split(self.embed(x).repeat(k, 1, 1))
        whether, what = bernoulli_sample(logits, generator), q.sample(generator)
        fit = self.likelihood.log_prob(self.decode_parts(whether, what), x.repeat(k, 1, 1, 1))
        return HardDraws(fit, self._kl(logits, q, whether, what), bernoulli_log_prob(logits, whether))

    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        whether, what = self.prior.sample(n, generator, temperature)
        return self.one_step(self.decode_parts(whether, what), {"whether": whether, "what": what})


def bernoulli_log_prob(logits: Tensor, drawn: Tensor) -> Tensor:
    """log p(drawn) of Bernoullis with `logits` (...), in nats. drawn: 0.0 or 1.0."""
    return -F.binary_cross_entropy_with_logits(logits, drawn, reduction="none")
