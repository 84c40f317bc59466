"""The base class of baselines with a discrete choice at each place, whose prior reads the choices in order.

Like NP-DRAW, these baselines train in two phases: first with relaxed draws, whose temperature falls, then
with hard draws, which give an unbiased gradient of the bound.
Shapes: k draws, B images, L places, W channels of a token, N samples.
"""

from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.baselines.base import Baseline, bound_of, kl_weight
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import PriorSpec
from npdraw_dist.core.noise import Noise
from npdraw_dist.core.objective import ramp
from npdraw_dist.nn.blocks import CausalBlock, causal_blocks
from npdraw_dist.nn.hard_draws import Loss, leave_one_out
from npdraw_dist.nn.objective import TAU_START
from npdraw_dist.nn.relaxations import total_kl
from npdraw_dist.nn.tables import START


class SequencePrior(nn.Module):
    """A causal network over places, row by row, whose states depend on a running sum over earlier places."""

    def __init__(self, settings: PriorSpec, places: int) -> None:
        super().__init__()
        self.places, width = places, settings.width
        self.position = nn.Parameter(START * torch.randn(places, width))
        self.last = nn.Linear(width, width)  # input from the previous place, in addition to the sum
        self.blocks = causal_blocks(settings)
        self.norm = nn.LayerNorm(width)

    def states(self, added: Tensor) -> Tensor:
        """Vectors (B, L, W) that the places add to the sum -> the state before each place (B, L, W)."""
        before = F.pad(added, (0, 0, 1, 0))[:, :-1]
        x = before.cumsum(1) + self.last(before) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def walk(self, n: int) -> Generator[Tensor, Tensor, None]:
        """Yields the state (n, W) before each place; the caller sends the vector (n, W) of the place."""
        blocks = [block for block in self.blocks if isinstance(block, CausalBlock)]
        caches = [block.cache(n, self.places, self.position) for block in blocks]
        total = before = self.position.new_zeros(n, self.position.shape[1])
        for place in range(self.places):
            x = (total + self.last(before) + self.position[place])[:, None]
            for block, cache in zip(blocks, caches, strict=True):
                x = block.step(x, place, cache)
            before = yield self.norm(x[:, 0])
            total = total + before


@dataclass(frozen=True)
class HardDraws:
    """Scores of k hard draws for each of B images, in nats.

    fit: (k * B,), log p(x|z). kl: terms of KL(q || p) at each place by name, (k * B, L), averaged over the
    choice at this place. log_q: (k * B, L), log-probability of the discrete choice that was drawn.
    """

    fit: Tensor
    kl: dict[str, Tensor]
    log_q: Tensor


class DiscreteBaseline(Baseline):
    """A baseline whose q makes a discrete choice at each place, independently given the image."""

    @abstractmethod
    def relaxed_parts(self, x: Tensor, tau: float, generator: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Makes a relaxed draw at temperature `tau`; returns log p(x|z) and the KL's terms, each (B,)."""

    @abstractmethod
    def hard_draws(self, x: Tensor, k: int, generator: Noise) -> HardDraws:
        """Makes and scores k hard draws for each image x (B, C, H, W)."""

    def is_hard(self, config: VAEConfig, progress: float) -> bool:
        """Whether draws are hard after the share `progress` of the budget; False if `vae.draws` is 1."""
        return config.draws > 1 and progress >= config.relaxed_share

    def may_end(self, config: VAEConfig, progress: float) -> bool:
        """False until hard draws begin, since relaxed draws do not train the bound that validation takes."""
        return config.draws == 1 or self.is_hard(config, progress)

    def training_loss(self, x: Tensor, config: VAEConfig, progress: float, generator: Noise) -> Loss:
        weight = kl_weight(config, progress)
        if self.is_hard(config, progress):
            return self._hard_loss(self.hard_draws(x, config.draws, generator), config.draws, weight)
        relaxed = config.relaxed_share if config.draws > 1 else 1.0
        tau = ramp(progress, TAU_START, config.tau_end, relaxed)
        fit, parts = self.relaxed_parts(x, tau, generator)
        kl = total_kl(parts)
        return weight * kl - fit, {"surrogate": fit - kl, "reconstruction": fit, **parts}

    def _hard_loss(self, drawn: HardDraws, k: int, weight: float) -> Loss:
        """The negative ELBO of k hard draws, with a score-function gradient as in `nn.hard_draws`."""
        each = total_kl(drawn.kl)
        later = each.flip(1).cumsum(1).flip(1) - each  # the KL at later places, which depends on the choice
        reward = drawn.fit.detach()[:, None] - weight * later.detach()
        score = (leave_one_out(reward, k) * drawn.log_q).sum(1)
        loss = weight * each.sum(1) - drawn.fit - score
        metrics = bound_of(drawn.fit, {name: value.sum(1) for name, value in drawn.kl.items()})
        return loss.view(k, -1).mean(0), {name: value.view(k, -1).mean(0) for name, value in metrics.items()}
