"""VQ-VAE (van den Oord et al., NeurIPS 2017), whose codes are a learned bank, with NP-DRAW's prior network.

q(z|x) is categorical at each cell, with logits -s |z_e(x) - e_k|^2 and a learned s > 0, as in SQ-VAE (Takida
et al. 2022), so ELBO and IWAE compare with those of other kinds. The paper takes the nearest code instead.
Relaxed draws have the straight-through gradient of the Gumbel-softmax; hard draws have the gradient of the
bound (`discrete`). One stage trains everything. The prior reads codes as integers, which have no gradient,
and learns at `vae.prior_learning_rate`. Codes that are hardly used are replaced (`VQVAE.after_step`).
Shapes: k draws, B images, L cells, K codes, D numbers of a code, N samples, C channels, H x W image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.baselines.discrete import DiscreteBaseline, HardDraws, SequencePrior
from npdraw_dist.baselines.latents import PriorDraws
from npdraw_dist.baselines.vae import (
    CELL,
    cell_centres,
    decoder_layers,
    encoder_layers,
    last_layer,
    whole_cells,
)
from npdraw_dist.config.spec import BaselineSpec, PriorSpec
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.objective import Gather
from npdraw_dist.nn.blocks import ExactConv2d, ExactLinear, at_least_float32, exactly
from npdraw_dist.nn.generative import Importance, at_centres
from npdraw_dist.nn.relaxations import (
    categorical_sample,
    gumbel_softmax,
    kl_categorical,
    straight_through,
)
from npdraw_dist.nn.steps import chosen
from npdraw_dist.nn.tables import TABLES

DEAD = 0.05  # a code is replaced if its share of all uses is below DEAD / K
MEMORY = 2000.0  # number of images after which the weight of an old use of a code has fallen to 1 / e


class CodePrior(SequencePrior):
    """p(z) = prod_l p(z_l | z_1 ... z_(l-1)) of codes z (B, L), int64 below K."""

    def __init__(self, settings: PriorSpec, places: int, codes: int) -> None:
        super().__init__(settings, places)
        table = "joint" if settings.table == "pixels" else settings.table  # codes have no pixels
        self.drawn = TABLES[table](places, codes, settings.width)
        self.drawn.start()
        self.state = nn.Linear(settings.width, settings.width)
        self.head = ExactLinear(settings.width, codes)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (B, L) -> logits (B, L, K) of each place given the codes before it."""
        places = torch.arange(self.places, device=z.device).expand_as(z)
        return self._logits(self.states(self.drawn(places, z)))

    @torch.no_grad()
    def sample(self, n: int, generator: Noise, temperature: float = 1.0) -> Tensor:
        """Draws n grids of codes, (n, L), place by place with a cache. temperature: divides the logits."""
        walk, found = self.walk(n), list[Tensor]()
        h = next(walk)
        with self.drawn.cached():
            for place in range(self.places):
                found.append(categorical_sample(self._logits(h) / temperature, generator))
                if place + 1 < self.places:
                    h = walk.send(self.drawn(torch.full_like(found[-1], place), found[-1]))
        return torch.stack(found, 1)

    def _logits(self, h: Tensor) -> Tensor:
        return self.head(F.gelu(self.state(h)))


class VQVAE(DiscreteBaseline):
    """Encodes an image as a grid of codes, one for each cell of CELL x CELL pixels, row by row."""

    title = "VQ-VAE"
    default_latents = 16
    has_sequence = True

    usage: Tensor
    seen: Tensor
    candidates: Tensor
    tickets: Tensor

    def __init__(self, spec: BaselineSpec) -> None:
        super().__init__(spec)
        assert spec.prior is not None
        _, height, width = spec.image_shape
        self.rows, self.columns = -(-height // CELL), -(-width // CELL)
        codes, numbers = spec.codes, spec.latents
        self.encoder = nn.Sequential(*encoder_layers(spec), ExactConv2d(spec.width, numbers, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(numbers, spec.width, 1),
            *decoder_layers(spec, last_layer(spec, self.blank())),
        )
        self.codebook = nn.Parameter(torch.randn(codes, numbers) / math.sqrt(numbers))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.prior = CodePrior(spec.prior, self.rows * self.columns, codes)
        # Each code's share of all uses, times K. The first step replaces the codes that it does not use.
        self.register_buffer("usage", torch.full((codes,), DEAD))
        # Since the last step, on this rank: uses of codes, candidates to replace codes, their random tickets.
        self.register_buffer("seen", torch.zeros(codes), persistent=False)
        self.register_buffer("candidates", torch.zeros(codes, numbers), persistent=False)
        self.register_buffer("tickets", torch.full((codes,), -1.0), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> vectors (B, L, D)."""
        return self.encoder(whole_cells(x)).flatten(2).transpose(1, 2)

    def logits(self, vectors: Tensor) -> Tensor:
        """Vectors (B, L, D) -> the logits (B, L, K), minus s times the squared distances to the codes."""
        vectors, book = at_least_float32(vectors), at_least_float32(self.codebook)
        with exactly(vectors):
            products = vectors @ book.T
        distance = vectors.square().sum(-1, keepdim=True) - 2 * products + book.square().sum(1)
        return -distance * self.log_scale.exp()

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the logits of q, (B, L, K)."""
        return self.logits(self.encode(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Vectors of codes (B, L, D) -> likelihood parameters (B, Q, H, W)."""
        _, height, width = self.spec.image_shape
        grid = codes.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        return self.decoder(grid)[..., :height, :width]

    @torch.no_grad()
    def swapped(self, a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
        """Swaps the most likely codes of the region's cells."""
        taken = at_centres(inside, cell_centres(self.rows, self.columns, inside.device))
        z = torch.where(taken, self.embed(b).argmax(-1), self.embed(a).argmax(-1))
        return self.likelihood.mean(self.decode_codes(F.embedding(z, self.codebook)))

    def draws(self, x: Tensor, embedded: Tensor, generator: Noise) -> Importance:
        z = categorical_sample(embedded, generator)
        reconstruction = self.likelihood.log_prob(self.decode_codes(F.embedding(z, self.codebook)), x)
        prior = self.prior(z)
        log_w = reconstruction + chosen(prior, z).sum(1) - chosen(embedded, z).sum(1)
        return Importance(log_w, reconstruction, {"kl": kl_categorical(embedded, prior).sum(1)})

    def relaxed_parts(self, x: Tensor, tau: float, generator: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        vectors = at_least_float32(self.encode(x))
        logits = self.logits(vectors)
        hard = straight_through(gumbel_softmax(logits, tau, generator))
        z = hard.detach().argmax(-1)
        with exactly(hard):
            codes = hard @ at_least_float32(self.codebook)
        self._count(vectors.detach(), z, generator)
        reconstruction = self.likelihood.log_prob(self.decode_codes(codes), x)
        return reconstruction, {"kl": kl_categorical(logits, self.prior(z)).sum(1)}

    def hard_draws(self, x: Tensor, k: int, generator: Noise) -> HardDraws:
        vectors = at_least_float32(self.encode(x))
        logits = self.logits(vectors).repeat(k, 1, 1)
        z = categorical_sample(logits, generator)
        self._count(vectors.detach().repeat(k, 1, 1), z, generator)
        output = self.decode_codes(F.embedding(z, self.codebook))
        fit = self.likelihood.log_prob(output, x.repeat(k, 1, 1, 1))
        return HardDraws(fit, {"kl": kl_categorical(logits, self.prior(z))}, chosen(logits, z))

    @torch.no_grad()
    def _count(self, vectors: Tensor, z: Tensor, generator: Noise) -> None:
        """Counts uses of codes; keeps as a code's candidate a vector of the image with the largest ticket."""
        if not self.training:
            return
        self.seen.index_add_(0, z.flatten(), torch.ones_like(z, dtype=self.seen.dtype).flatten())
        shape = (len(z), self.spec.codes)
        ticket, row = uniform(shape, generator, vectors).max(0)
        cells = (uniform(shape, generator, vectors) * z.shape[1]).long().clamp_(max=z.shape[1] - 1)
        taken = vectors[row, cells.gather(0, row[None])[0]]
        better = (ticket > self.tickets) & taken.isfinite().all(1)
        self.candidates.copy_(torch.where(better[:, None], taken, self.candidates))
        self.tickets.copy_(torch.maximum(ticket, self.tickets))

    @torch.no_grad()
    def after_step(self, gather: Gather) -> None:
        """Updates the use of each code from the counts of all ranks.

        Replaces a code whose use fell below DEAD with a random encoder output.
        """
        found = gather(torch.cat([self.seen[:, None], self.tickets[:, None], self.candidates], 1))
        codes = self.spec.codes
        seen, winner = found[:, :, 0].sum(0), found[:, :, 1].argmax(0)
        candidates = found[winner, torch.arange(codes, device=winner.device), 2:]
        images = seen.sum() / (self.rows * self.columns)
        kept = torch.exp(-images / MEMORY)
        usage = kept * self.usage + (1 - kept) * seen * codes / seen.sum().clamp(min=1)
        dead = usage < DEAD
        self.codebook.copy_(torch.where(dead[:, None], candidates, self.codebook))
        self.usage.copy_(torch.where(dead, torch.ones_like(usage), usage))
        self.seen.zero_()
        self.tickets.fill_(-1.0)

    def generate(self, n: int, generator: Noise, temperature: float) -> PriorDraws:
        z = self.prior.sample(n, generator, temperature)
        return self.one_step(self.decode_codes(F.embedding(z, self.codebook)), {"codes": z})
