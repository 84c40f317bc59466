"""Draws of the posterior as sequences of steps, their probability, and their KL to the prior.

q gives each place its own *whether* and *what*, independent given the image. In `aligned` order step t is
place t. In a free order `core.orders` arranges the drawn places, at most T, by a function of what is drawn,
so log q of the sequence is log q of the drawn places and parts.
Shapes: B batch, T steps, L places, K parts, S groups of choices.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import Free
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.relaxations import Noise, categorical_sample, kl_categorical, total_kl
from npdraw_dist.nn.steps import StepLogits, aligned_where, chosen, kl_steps, log_prob, log_prob_steps
from npdraw_dist.nn.subsets import likeliest_subset, log_normalizer, sample_subset


@dataclass(frozen=True)
class Terms:
    """What a bound and its gradient need of a draw z ~ q, in nats.

    kl: the parts of KL(q || p) by name, each (B,), averaged over each choice given the others if possible.
    log_q: (B, S), log q of z in S groups of choices. dependent: (B, S), the KL that a group's choices change.
    """

    kl: dict[str, Tensor]
    log_q: Tensor
    dependent: Tensor


class AlignedLayout:
    """Step t is place t, so that q, whether (B, L) and what (B, L, K) logits, factorises over steps."""

    def sample(self, q: StepLogits, bank: Tensor, generator: Noise) -> PartSequence:
        """One draw z ~ q for each row. bank: parts (K, C, P, P)."""
        drawn = sample_subset(q.whether, self.most(q), generator)
        return self.arranged(drawn, categorical_sample(q.what, generator), bank)

    def likeliest(self, q: StepLogits, bank: Tensor) -> PartSequence:
        """The most likely places, with their most likely parts."""
        return self.arranged(likeliest_subset(q.whether, self.most(q)), q.what.argmax(-1), bank)

    def most(self, q: StepLogits) -> int:
        """T, the most parts of a drawing."""
        return q.whether.shape[1]

    def log_prob(self, q: StepLogits, z: PartSequence) -> Tensor:
        """log q(z), (B,) nats, of drawings in this order, such as draws and parses."""
        return log_prob(q, z)

    def arranged(self, drawn: Tensor, what: Tensor, bank: Tensor) -> PartSequence:
        """The drawing of the parts `what` (B, L) at the places `drawn` (B, L) bool, at most T of an image."""
        return PartSequence(drawn, aligned_where(len(drawn), drawn.shape[1], drawn.device).clone(), what)

    def surrogate_kl(self, q: StepLogits, p: StepLogits, z: PartSequence) -> dict[str, Tensor]:
        """Parts of KL(q || p), each (B,), given a hard draw z of q; without its effect on later steps."""
        return {name: value.sum(1) for name, value in kl_steps(q, p).items()}

    def terms(self, q: StepLogits, p: StepLogits, z: PartSequence) -> Terms:
        """p: the prior's logits of each step of z, teacher-forced."""
        parts = kl_steps(q, p)
        total = total_kl(parts)
        later = total.flip(1).cumsum(1).flip(1) - total  # a step changes what the prior expects of later ones
        return Terms({name: value.sum(1) for name, value in parts.items()}, log_prob_steps(q, z), later)


class FreeLayout(AlignedLayout):
    """A set of at most `steps` places of `grid`, drawn in `order`."""

    def __init__(self, order: Free, grid: Grid, steps: int) -> None:
        self.order, self.grid, self.steps = order, grid, steps

    def most(self, q: StepLogits) -> int:
        return self.steps

    def arranged(self, drawn: Tensor, what: Tensor, bank: Tensor) -> PartSequence:
        energy = self.grid.ink(bank).square().sum((1, 2, 3))[what]  # stands for the gain in a parse
        whether, where = self.order.arrange(drawn, energy, self.grid, self.steps)
        return PartSequence(whether, where, what.gather(1, where)).canonical()

    def log_prob(self, q: StepLogits, z: PartSequence) -> Tensor:
        places, parts = self._log_q(q, z)
        return places + parts

    def _log_q(self, q: StepLogits, z: PartSequence) -> tuple[Tensor, Tensor]:
        """log q of the drawn places, and of the parts at them, each (B,)."""
        places = (q.whether.gather(1, z.where) * z.whether).sum(1) - log_normalizer(q.whether, self.steps)
        parts = chosen(self._what_of_steps(q, z), z.what)
        return places, (parts * z.whether).sum(1)

    def _what_of_steps(self, q: StepLogits, z: PartSequence) -> Tensor:
        """(B, T, K): q's logits of *what* at the place of each step."""
        return q.what.gather(1, z.where[..., None].expand(-1, -1, q.what.shape[-1]))

    def surrogate_kl(self, q: StepLogits, p: StepLogits, z: PartSequence) -> dict[str, Tensor]:
        """The entropy of *whether* is that of independent places, also if T < L."""
        assert p.where is not None
        drawn = z.whether.to(p.whether.dtype)
        log_drawn = F.logsigmoid(q.whether).gather(1, z.where)
        weight = drawn * (1 + log_drawn - log_drawn.detach())  # `drawn`, with the gradient of its chance
        entropy = F.softplus(q.whether) - q.whether * torch.sigmoid(q.whether)
        stops = -F.logsigmoid(-p.whether) * (1 - drawn)
        draws = -F.logsigmoid(p.whether) * weight
        return {
            "kl_whether": (stops + draws).sum(1) - entropy.sum(1),
            "kl_what": (kl_categorical(self._what_of_steps(q, z), p.what) * weight).sum(1),
            "kl_where": -(chosen(p.where, z.where) * weight).sum(1),
        }

    def terms(self, q: StepLogits, p: StepLogits, z: PartSequence) -> Terms:
        assert p.where is not None
        drawn = z.whether.to(p.whether.dtype)
        places, parts = self._log_q(q, z)
        p_places = chosen(p.where, z.where) * drawn
        p_places = p_places - F.binary_cross_entropy_with_logits(p.whether, drawn, reduction="none")
        if self.order.of_places:
            kl_what = (kl_categorical(self._what_of_steps(q, z), p.what) * drawn).sum(1)
        else:  # another part would change the order
            kl_what = parts - (chosen(p.what, z.what) * drawn).sum(1)
        # How many parts are drawn is part of which places are.
        kl_where = places - p_places.sum(1)
        kl = {"kl_whether": torch.zeros_like(kl_what), "kl_what": kl_what, "kl_where": kl_where}
        return Terms(kl, (places + parts)[:, None], total_kl(kl)[:, None])
