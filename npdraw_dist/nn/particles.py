"""Samples drawings z ~ p(z | kept parts) by sequential Monte Carlo.

Each of n particles is a partial drawing that grows by steps drawn from the prior, but only by steps that can
lead to a well-formed drawing with all kept parts. A particle's weight is the product, over its steps, of the
total probability of all allowed steps. Particles of high weight replace those of low weight (Doucet and
Johansen 2009, section 3.5). As n grows, a particle drawn in proportion to its weight tends to an exact draw.
Shapes: B images, n particles per image, N = B * n, T steps, L places, K parts, W channels of a state.
"""

import math
from contextlib import closing
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.orders import LAST, Free
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import StepLogits

NONE, KEPT, OTHER = range(3)  # a step draws nothing, the next kept part, or another part


@dataclass(frozen=True)
class Kept:
    """The kept steps and places. z: (B, T), in which only kept steps draw. places: (B, L) bool."""

    z: PartSequence
    places: Tensor

    def __getitem__(self, index: slice | Tensor) -> "Kept":
        return Kept(self.z[index], self.places[index])

    def repeat(self, copies: int) -> "Kept":
        """Repeats each row `copies` times in succession."""
        return Kept(
            self.z.map(lambda value: value.repeat_interleave(copies, 0)),
            self.places.repeat_interleave(copies, 0),
        )

    def of_places(self) -> tuple[Tensor, Tensor]:
        """Returns drawn (B, L) bool, the places with a kept part, and what (B, L), the first one there."""
        return first_parts(self.z, self.places.shape[1])


def first_parts(z: PartSequence, places: int) -> tuple[Tensor, Tensor]:
    """Returns drawn (B, L) bool, the places where z draws, and what (B, L), the first part there."""
    where = torch.where(z.whether, z.where, places)  # steps that draw nothing go to a column that is dropped
    step = torch.arange(z.steps, device=where.device).expand(len(z), -1)
    first = step.new_full((len(z), places + 1), z.steps).scatter_reduce(1, where, step, "amin")[:, :places]
    return first < z.steps, z.what.gather(1, first.clamp(max=z.steps - 1))


class Rules:
    """Determines which steps can lead N particles to a well-formed drawing with all kept parts."""

    def __init__(self, prior: StepPrior, kept: Kept, temperature: float) -> None:
        self.prior, self.kept, self.temperature = prior, kept, temperature

    def draw(self, h: Tensor, step: int, generator: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Samples *whether*, *where* and *what* of a step from a proposal q, given the state h (N, W).

        Returns these three and log p - log q of the step, each (N,).
        """
        raise NotImplementedError

    def exchange(self, index: Tensor) -> None:
        """Gives each particle the state of the particle `index` (N,). Rules without a state do nothing."""

    def logits(self, h: Tensor, where: Tensor) -> StepLogits:
        """Logits of whether (N,), of where (N, L) or None, and of what (N, K) given `where` (N,)."""
        logits = self.prior.logits(h[:, None], where[:, None]).float32()
        return logits.map(lambda values: values[:, 0] / self.temperature)


class AlignedRules(Rules):
    """Rules of an aligned order: step t draws at place t, even if the prior has logits of *where*."""

    def __init__(self, prior: StepPrior, kept: Kept, temperature: float) -> None:
        super().__init__(prior, kept, temperature)
        self.drawn, self.what = kept.of_places()

    def chances(self, h: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns where (N,), log p(draw there) (N,), log p(draw nothing) (N,), and logits of what (N, K)."""
        where = torch.full((len(h),), step, device=h.device)
        logits = self.logits(h, where)
        yes, no = F.logsigmoid(logits.whether), F.logsigmoid(-logits.whether)
        if logits.where is not None:
            yes = yes + logits.where.log_softmax(-1)[:, step]
        return where, yes, no, logits.what

    def draw(self, h: Tensor, step: int, generator: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        where, yes, no, logits = self.chances(h, step)
        either = torch.logaddexp(yes, no)
        noise = uniform(yes.shape, generator, yes)
        whether, what = noise < (yes - either).exp(), categorical_sample(logits, generator)
        kept, drawn, part = self.kept.places[:, step], self.drawn[:, step], self.what[:, step]
        log_part = logits.log_softmax(-1).gather(1, part[:, None])[:, 0]
        log_kept = torch.where(drawn, yes + log_part, no)
        log_weight = torch.where(kept, log_kept, either)
        return torch.where(kept, drawn, whether), where, torch.where(kept, part, what), log_weight


class SketchRules(AlignedRules):
    """`AlignedRules` with a sketch. At places that are not kept, parts that match the ink are likelier."""

    def __init__(self, prior: StepPrior, kept: Kept, temperature: float, evidence: Tensor) -> None:
        """evidence: (N, L, K + 1), log p(ink at the place | part); the last entry is for no part."""
        super().__init__(prior, kept, temperature)
        self.evidence = evidence

    def draw(self, h: Tensor, step: int, generator: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        where, yes, no, logits = self.chances(h, step)
        each = torch.cat([yes[:, None] + logits.log_softmax(-1), no[:, None]], 1)
        none, seen = each.shape[1] - 1, each + self.evidence[:, step]
        kept, drawn, part = self.kept.places[:, step], self.drawn[:, step], self.what[:, step]
        given = torch.where(drawn, part, none)
        choice = torch.where(kept, given, categorical_sample(seen, generator))
        log_weight = torch.where(kept, each.gather(1, given[:, None])[:, 0], seen.logsumexp(1))
        return choice < none, where, torch.where(choice < none, choice, 0), log_weight


class FreeRules(Rules):
    """Rules of a free order, in which each step draws the next part, until a step draws nothing.

    Part k at place l has the key rank_k L + near_l. If the gain decides the order, rank_k is the rank of the
    part's energy, and near_l is l. Otherwise rank_k is 0, and near_l is the value of `Free.next_key`. Small
    keys come first, so a part that is not kept may precede the next kept part only if its key is smaller.
    """

    def __init__(self, prior: StepPrior, kept: Kept, temperature: float, order: Free, energy: Tensor) -> None:
        """energy: (K,), the sum of squares of each part's ink."""
        super().__init__(prior, kept, temperature)
        self.order, self.grid = order, prior.spec.grid
        self.left = kept.z.whether  # (N, T) kept steps that are not drawn yet
        self.open = ~kept.places  # (N, L) places not kept that may still be drawn
        self.last = torch.full((len(kept.places),), -1, device=energy.device)  # the last drawn place
        self.key = self.last  # the key of the last part, if the gain decides the order; else -1
        self.stopped = torch.zeros_like(self.last, dtype=torch.bool)
        self.rank = torch.zeros_like(energy, dtype=torch.int64)
        if not order.of_places:
            self.rank = torch.unique(-energy, return_inverse=True)[1]
        first = self.rank[kept.of_places()[1]].gather(1, kept.z.where)
        self.kept_rank = first * self.grid.places

    def draw(self, h: Tensor, step: int, generator: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        near, z, left = self._near(), self.kept.z, self.left.sum(1)
        keys = (self.kept_rank + near.gather(1, z.where)).masked_fill(~self.left, LAST)
        limit, kept = keys.min(1)  # the first of equal keys, so steps at one place keep their order
        place, part = (value.gather(1, kept[:, None])[:, 0] for value in (z.where, z.what))
        logits = self.logits(h, place)
        assert logits.where is not None
        places = logits.where.log_softmax(-1)
        others = places.masked_fill(~self._before(near, limit), -math.inf)
        log_part = logits.what.log_softmax(-1).gather(1, part[:, None])[:, 0]
        yes, no = F.logsigmoid(logits.whether), F.logsigmoid(-logits.whether)
        no = no.masked_fill(left > 0, -math.inf)
        next_kept = yes + places.gather(1, place[:, None])[:, 0] + log_part
        next_kept = next_kept.masked_fill(left == 0, -math.inf)
        full = self.prior.steps - step <= left
        other = (yes + others.logsumexp(1)).masked_fill(full | self.stopped, -math.inf)
        choices = torch.stack([no, next_kept, other], 1)
        choice = categorical_sample(choices, generator)
        new, log_new, what = self._another(h, others, near, limit, generator)
        where = torch.where(choice == KEPT, place, new)
        what = torch.where(choice == KEPT, part, what)
        log_weight = choices.logsumexp(1) + torch.where(choice == OTHER, log_new, 0.0)
        key = self.rank[what] * self.grid.places + near.gather(1, where[:, None])[:, 0]
        self._advance(choice, kept, where, near, torch.where(choice == KEPT, limit, key))
        return choice != NONE, where, what, log_weight

    def _near(self) -> Tensor:
        """near_l, the term of the keys that depends on the place, (N, L)."""
        if self.order.next_key is not None:
            return self.order.next_key(self.last, self.grid)
        return torch.arange(self.grid.places, device=self.last.device).expand(len(self.last), -1)

    def _before(self, near: Tensor, limit: Tensor) -> Tensor:
        """Whether a place (N, L) is open and has a part whose key is above self.key and below `limit`."""
        places, last = self.grid.places, self.rank.max()
        least = ((self.key[:, None] - near) // places + 1).clamp(min=0)
        most = ((limit[:, None] - near - 1) // places).minimum(last)
        return self.open & (least <= most)

    def _another(
        self, h: Tensor, others: Tensor, near: Tensor, limit: Tensor, generator: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws a part that is not kept. Returns its place, log p(any allowed part | place), and the part."""
        where = categorical_sample(others, generator)  # an arbitrary place if none can be drawn
        logits = self.logits(h, where).what.log_softmax(-1)
        keys = near.gather(1, where[:, None]) + self.rank * self.grid.places  # (N, K)
        allowed = (keys > self.key[:, None]) & (keys < limit[:, None])
        logits = logits.masked_fill(~allowed, -math.inf)
        return where, logits.logsumexp(1), categorical_sample(logits, generator)

    def _advance(self, choice: Tensor, kept: Tensor, where: Tensor, near: Tensor, key: Tensor) -> None:
        """Updates the state after a step that drew kept step `kept`, another part at `where`, or nothing."""
        drawn, step = choice != NONE, torch.arange(self.left.shape[1], device=where.device)
        self.left = self.left & ~((step == kept[:, None]) & (choice == KEPT)[:, None])
        self.stopped = self.stopped | ~drawn
        if self.order.of_places:
            passed = near <= key[:, None]
        else:
            passed = near == where[:, None]
            self.key = torch.where(drawn, key, self.key)
        self.open = self.open & ~(passed & drawn[:, None])
        self.last = torch.where(drawn, where, self.last)

    def exchange(self, index: Tensor) -> None:
        self.left, self.open, self.last = self.left[index], self.open[index], self.last[index]
        self.key, self.stopped = self.key[index], self.stopped[index]


def weighted_particles(
    prior: StepPrior, rules: Rules, particles: int, generator: Noise
) -> tuple[PartSequence, Tensor]:
    """Draws all steps of the particles. Returns their drawings, (B * n, T), and log-weights, (B, n)."""
    shape = (len(rules.kept.places), prior.steps)
    where = torch.zeros(shape, dtype=torch.int64, device=rules.kept.places.device)
    z = PartSequence(where.bool(), where, where.clone())
    log_weight, index = torch.zeros(len(z), device=where.device), None
    # `states` is closed even after an error, because the prior caches the parts' codes until it is closed.
    with closing(prior.states(z)) as states:
        for t in range(prior.steps):
            h = states.send(index)
            z.whether[:, t], z.where[:, t], z.what[:, t], added = rules.draw(h, t, generator)
            log_weight, index = log_weight + added, None
            if t + 1 < prior.steps and particles > 1:
                index, log_weight = _resampled(log_weight.view(-1, particles), generator)
            if index is not None:
                for value in (z.whether, z.where, z.what):
                    value.copy_(value[index])
                rules.exchange(index)
    return z, log_weight.view(-1, particles)


def _resampled(log_weight: Tensor, generator: Noise) -> tuple[Tensor | None, Tensor]:
    """Resamples, by log_weight (B, n), the particles of images with an effective sample size below n / 2.

    Resampling is systematic. Returns the rows (N,) that replace the particles, or None if no image is
    resampled, and the new log-weights (N,).
    """
    particles = log_weight.shape[1]
    share = log_weight.softmax(1)
    few = share.square().sum(1) * particles > 2
    if not few.any():
        return None, log_weight.flatten()
    noise = uniform((len(share), 1), generator, share)
    points = (torch.arange(particles, device=share.device) + noise) / particles
    own = torch.arange(particles, device=share.device).expand_as(share)
    index = torch.searchsorted(share.cumsum(1), points).clamp(max=particles - 1)
    index = torch.where(few[:, None], index, own)
    rows = index + particles * torch.arange(len(share), device=share.device)[:, None]
    return rows.flatten(), log_weight.masked_fill(few[:, None], 0.0).flatten()
