"""Log-probabilities and KLs of the steps of a drawing under the prior p and the posterior q.

Under q, each place has its own *whether* and *what*, independent given the image. In order `aligned`, step t
draws at place t. In a free order, at most T places are drawn. `core.orders` arranges them by a function of
the places and their parts, so log q of the sequence is log q of the drawn places and parts. A set A of at
most T places has the probability prod_{l in A} exp(w_l) / Z, where w_l is the logit of *whether* at place l,
and Z sums the product over all such sets.
Shapes: B batch, T steps, L places, K parts, S groups of choices, N tables, M entries of a table.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.orders import Free
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.blocks import at_least_float32
from npdraw_dist.nn.relaxations import categorical_sample, kl_bernoulli, kl_categorical, total_kl

NEVER = -1e9  # stands for the log-probability -inf, but has a finite gradient


@dataclass(frozen=True)
class StepLogits:
    """Step logits: whether (B, T); where (B, T, L), or None if step t draws at place t; what (B, T, K)."""

    whether: Tensor
    where: Tensor | None
    what: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "StepLogits":
        """The logits with `change` applied to each of the three tensors."""
        where = None if self.where is None else change(self.where)
        return StepLogits(change(self.whether), where, change(self.what))

    def float32(self) -> "StepLogits":
        """The logits in float32 or wider: bfloat16 has too few digits for a KL."""
        return self.map(at_least_float32)

    def tile(self, copies: int) -> "StepLogits":
        """The whole batch repeated `copies` times."""
        return self.map(lambda logits: logits.repeat(copies, *(1 for _ in logits.shape[1:])))


def log_prob(logits: StepLogits, z: PartSequence) -> Tensor:
    """log p(z), (B,) nats. where and what count only at steps that draw (paper eq. 2)."""
    return log_prob_steps(logits, z).sum(1)


def log_prob_steps(logits: StepLogits, z: PartSequence) -> Tensor:
    """The log-probability of each step of z, (B, T) nats."""
    drawn = z.whether.to(logits.whether.dtype)
    whether = -F.binary_cross_entropy_with_logits(logits.whether, drawn, reduction="none")
    choice = chosen(logits.what, z.what)
    if logits.where is not None:
        choice = choice + chosen(logits.where, z.where)
    return whether + torch.where(z.whether, choice, 0.0)


def chosen(logits: Tensor, index: Tensor) -> Tensor:
    """logits (B, T, N), index (B, T) -> the log-probability of each index, (B, T)."""
    # The logit minus `logsumexp` has a slower gradient, especially where probabilities are tiny.
    return logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]


def kl_steps(q: StepLogits, p: StepLogits, weight: Tensor | None = None) -> dict[str, Tensor]:
    """KL(q || p) of each step's choices, (B, T) nats, given the steps before (paper eq. 5).

    Either both q and p draw *where*, or *where* is given for both. The KLs of *what* and *where* are weighted
    by q's probability of drawing, or by `weight` (B, T). The KL of a step's own choices is exact if they are
    independent under p.
    """
    drawn = torch.sigmoid(q.whether) if weight is None else weight
    if q.where is None:
        kl_where = torch.zeros_like(q.whether)
    else:
        assert p.where is not None
        kl_where = drawn * kl_categorical(q.where, p.where)
    return {
        "kl_whether": kl_bernoulli(q.whether, p.whether),
        "kl_what": drawn * kl_categorical(q.what, p.what),
        "kl_where": kl_where,
    }


@dataclass(frozen=True)
class Terms:
    """The quantities of a draw z ~ q that a bound and its gradient need, in nats.

    kl: the terms of KL(q || p) by name, each (B,), in closed form where possible, otherwise from the sampled
    choice. log_q: (B, S), log q of z in S groups of choices. dependent: (B, S), the sum of
    the KL terms that depend on the choices of a group.
    """

    kl: dict[str, Tensor]
    log_q: Tensor
    dependent: Tensor


class AlignedLayout:
    """Step t draws at place t, so q factorises over steps. q has logits whether (B, L), what (B, L, K)."""

    steps = sys.maxsize  # largest number of parts in a drawing; only the number of places limits it

    def sample(self, q: StepLogits, bank: Tensor, generator: Noise) -> PartSequence:
        """Draws one z ~ q for each row. bank: parts (K, C, P, P)."""
        drawn = sample_subset(q.whether, self.steps, generator)
        return self.arranged(drawn, categorical_sample(q.what, generator), bank)

    def likeliest(self, q: StepLogits, bank: Tensor) -> PartSequence:
        """The drawing of the most likely places with their most likely parts."""
        return self.arranged(likeliest_subset(q.whether, self.steps), q.what.argmax(-1), bank)

    def log_prob(self, q: StepLogits, z: PartSequence) -> Tensor:
        """log q(z), (B,) nats; z must be in this layout, as draws and parses are."""
        return log_prob(q, z)

    def arranged(self, drawn: Tensor, what: Tensor, bank: Tensor) -> PartSequence:
        """The drawing with parts `what` (B, L) at the places `drawn` (B, L) bool, at most T per image."""
        where = torch.arange(drawn.shape[1], device=drawn.device).repeat(len(drawn), 1)
        return PartSequence(drawn, where, what)

    def surrogate_kl(self, q: StepLogits, p: StepLogits, z: PartSequence) -> dict[str, Tensor]:
        """Terms of KL(q || p), each (B,), for a hard draw z ~ q; ignores how z affects later steps."""
        return {name: value.sum(1) for name, value in kl_steps(q, p).items()}

    def terms(self, q: StepLogits, p: StepLogits, z: PartSequence) -> Terms:
        """The terms of a draw z. p: the prior's teacher-forced logits of each step of z."""
        parts = kl_steps(q, p)
        total = total_kl(parts)
        later = total.flip(1).cumsum(1).flip(1) - total  # a step changes p of later steps
        return Terms({name: value.sum(1) for name, value in parts.items()}, log_prob_steps(q, z), later)


class FreeLayout(AlignedLayout):
    """The layout where at most `steps` places of `grid` are drawn in a free `order`."""

    def __init__(self, order: Free, grid: Grid, steps: int) -> None:
        self.order, self.grid, self.steps = order, grid, steps

    def arranged(self, drawn: Tensor, what: Tensor, bank: Tensor) -> PartSequence:
        energy = self.grid.ink(bank).square().sum((1, 2, 3))[what]  # a parse orders its parts by gain instead
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
        """q's logits of *what* at the place of each step, (B, T, K)."""
        return q.what.gather(1, z.where[..., None].expand(-1, -1, q.what.shape[-1]))

    def surrogate_kl(self, q: StepLogits, p: StepLogits, z: PartSequence) -> dict[str, Tensor]:
        """See `AlignedLayout.surrogate_kl`. The entropy of q ignores that at most T places are drawn."""
        assert p.where is not None
        drawn = z.whether.to(p.whether.dtype)
        log_drawn = F.logsigmoid(q.whether).gather(1, z.where)
        weight = drawn * (1 + log_drawn - log_drawn.detach())  # value `drawn`, gradient of `log_drawn`
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
        else:  # no closed form, since another part would change the order
            kl_what = parts - (chosen(p.what, z.what) * drawn).sum(1)
        # The places also determine how many parts are drawn, so *whether* has no separate term.
        kl_where = places - p_places.sum(1)
        kl = {"kl_whether": torch.zeros_like(kl_what), "kl_what": kl_what, "kl_where": kl_where}
        return Terms(kl, (places + parts)[:, None], total_kl(kl)[:, None])


def log_normalizer(logits: Tensor, most: int) -> Tensor:
    """log Z, (B,), where Z sums over all sets of at most `most` places. logits: w, (B, L)."""
    if most >= logits.shape[1]:
        return F.softplus(logits).sum(1)
    return _totals(logits, most).logsumexp(1)


@torch.no_grad()
def sample_subset(logits: Tensor, most: int, generator: Noise) -> Tensor:
    """Draws a set of at most `most` places for each row of logits (B, L): bool (B, L)."""
    noise = uniform(logits.shape, generator, logits)
    if most >= logits.shape[1]:
        return noise < torch.sigmoid(logits)
    tables = _by_count(logits, most)
    left = categorical_sample(tables[-1], generator)[:, None]  # number of places still to be drawn
    # Whether each place is drawn, for each possible number of places that are still to be drawn.
    draws = (noise.t()[:, :, None] >= (tables[:-1] - tables[1:]).exp()).long()
    drawn = []
    for draw in reversed(draws.unbind()):
        drawn.append(draw.gather(1, left))
        left = left - drawn[-1]
    return torch.cat(drawn[::-1], 1).bool()


@torch.no_grad()
def likeliest_subset(logits: Tensor, most: int) -> Tensor:
    """The most likely set of at most `most` places for each row of logits (B, L), bool (B, L)."""
    best = logits.topk(min(most, logits.shape[1]), dim=1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, True) & (logits > 0)


def _totals(logits: Tensor, most: int) -> Tensor:
    """(B, T + 1): entry (:, j) is the log total weight of all sets of j places. Takes log2(L) merges."""
    size = 1 << (logits.shape[1] - 1).bit_length()
    with_it = F.pad(logits, (0, size - logits.shape[1]), value=NEVER)
    tables = torch.stack([torch.zeros_like(with_it), with_it], 2)  # (B, N, M)
    while tables.shape[1] > 1:
        first, second, others = tables[:, ::2].flip(2), tables[:, 1::2], tables.shape[2] - 1
        pairs = F.pad(second, (others, others), value=NEVER).unfold(2, others + 1, 1)[:, :, : most + 1]
        tables = (first[:, :, None] + pairs).logsumexp(3)
    return tables[:, 0, : most + 1]


@torch.no_grad()
def _by_count(logits: Tensor, most: int) -> Tensor:
    """(L + 1, B, T + 1): entry (l, :, j) is the log total weight of all sets of j of the first l places."""
    batch, count = logits.shape
    tables = logits.new_full((count + 1, batch, most + 2), NEVER)  # column 0 is for the impossible count -1
    tables[0, :, 1].zero_()
    for number, element in enumerate(logits.unbind(1)):
        before, after = tables[number], tables[number + 1]
        torch.logaddexp(before[:, 1:], before[:, :-1] + element[:, None], out=after[:, 1:])
    return tables[:, :, 1:]
