"""Completes drawings. The prior draws the free places, which are not kept, by z ~ p(z | kept places).

The prior is causal, but a kept place may come later than a free one. So a completion starts with sequential
Monte Carlo (`nn.particles`) and continues with a Markov chain that visits free places. Both are exact in the
limit of many particles or visits; docs/how-it-works.md has measurements. In a free order (`core.orders.Free`)
the result has at most one part at each free place, and all parts are in the model's order.
Shapes: B images, R of them at once, m candidates, T steps, L places, K parts, D = C * P * P pixels of a part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.orders import LAST, ORDERS, Free
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.vocabulary import Condition
from npdraw_dist.nn.particles import (
    AlignedRules,
    FreeRules,
    Kept,
    Rules,
    SketchRules,
    first_parts,
    weighted_particles,
)
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import log_prob

STEPS = 2**15  # largest total number of steps in the sequences computed at once; limits memory
# A sketch's pixel is ink if it differs from the background by more than INK. SKETCH_NOISE: see `evidence_of`.
INK, SKETCH_NOISE = 0.4, 0.25
UNIFORM = 0.1  # weight of a uniform distribution in the proposal q, which makes every part possible


@dataclass(frozen=True)
class Effort:
    """How closely a completion follows p(z | kept places). Higher numbers are more exact and take longer.

    particles: number of particles of the first draw. visits: number of visits that follow, each of which
    redraws a free place of each drawing. candidates: number of parts among which a visit chooses. Raises
    ValueError if a number is too small.
    """

    particles: int = 128
    visits: int = 48
    candidates: int = 4

    def __post_init__(self) -> None:
        for name, least in (("particles", 1), ("visits", 0), ("candidates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")


class HowToComplete(TypedDict, total=False):
    """The options of `NPDraw.complete` by name."""

    seed: int | None
    temperature: float | None
    effort: Effort | None
    condition: Condition | Sequence[Condition] | None
    guidance: float
    sketch: Any


class Completer:
    """Completes drawings. bank: parts (K, C, P, P). temperature > 0 divides all logits of the prior."""

    def __init__(self, prior: StepPrior, bank: Tensor, temperature: float, effort: Effort) -> None:
        self.prior, self.spec, self.temperature, self.effort = prior, prior.spec, temperature, effort
        self.order = ORDERS[prior.spec.order]
        self.energy = self.spec.grid.ink(bank).square().sum((1, 2, 3))
        # The part of median energy (sum of squared ink) is the placeholder for a part that is not known yet.
        self.typical = self.energy.argsort()[len(bank) // 2]

    @torch.no_grad()
    def __call__(
        self, z: PartSequence, keep: Tensor, generator: Noise, evidence: Tensor | None = None
    ) -> PartSequence:
        """z (B, T), keep (B, L) bool -> completed z (B, T). Raises ValueError as `require_kept` does.

        evidence: (B, L, K + 1), computed from a sketch by `evidence_of`, for order aligned only. With
        evidence there are no visits, because they would ignore it; the particles' weights include it.
        """
        kept = require_kept(z, keep, self.prior)
        effort = self.effort
        if evidence is not None:
            effort = Effort(effort.particles, 0, 1)
        elif self.spec.where_given and not (keep[:, 1:] & ~keep[:, :-1]).any():
            effort = Effort(1, 0, 1)  # no kept place comes after a free one, so the prior's own draw is exact
        at_once = max(STEPS // (z.steps * max(effort.particles, effort.candidates)), 1)
        chunks = [slice(i, i + at_once) for i in range(0, len(z), at_once)]
        done = [
            self._draw(kept[rows], effort, generator, None if evidence is None else evidence[rows])
            for rows in chunks
        ]
        drawn = PartSequence.cat(done)
        # If all places are kept, the result is z itself, even if its steps are not in the model's order.
        every = keep.all(1)[:, None]
        pairs = zip(vars(z).values(), vars(drawn).values(), strict=True)
        return PartSequence(*(torch.where(every, old, new) for old, new in pairs))

    def _draw(
        self, kept: Kept, effort: Effort, generator: Noise, evidence: Tensor | None = None
    ) -> PartSequence:
        particles = kept.repeat(effort.particles)
        if evidence is not None:
            seen = evidence.repeat_interleave(effort.particles, 0)
            rules: Rules = SketchRules(self.prior, particles, self.temperature, seen)
        elif isinstance(self.order, Free):
            rules = FreeRules(self.prior, particles, self.temperature, self.order, self.energy)
        else:
            rules = AlignedRules(self.prior, particles, self.temperature)
        found, log_weight = weighted_particles(self.prior, rules, effort.particles, generator)
        chosen = categorical_sample(log_weight, generator)
        z = found[chosen + effort.particles * torch.arange(len(chosen), device=chosen.device)]
        others = z.whether & ~kept.places.gather(1, z.where)
        drawn, what = first_parts(PartSequence(others, z.where, z.what), kept.places.shape[1])
        if effort.visits:
            self._walk(kept, drawn, what, generator)
        return self.arranged(kept, drawn, what)

    def arranged(self, kept: Kept, drawn: Tensor, what: Tensor) -> PartSequence:
        """Merges kept steps and the parts `what` (B, L) at places `drawn` (B, L) into drawings of T steps."""
        kept_drawn, kept_what = kept.of_places()
        chosen, parts = kept_drawn | drawn, torch.where(drawn, what, kept_what)
        steps, places = self.spec.steps, self.spec.grid.places
        whether, where = self.order.arrange(chosen, self.energy[parts], self.spec.grid, steps)
        if self.order.aligned:
            return PartSequence(whether, where.clone(), parts)
        turn = torch.arange(steps, device=where.device).expand_as(where)
        turns = turn.new_full((len(where), places + 1), LAST)
        turns = turns.scatter(1, torch.where(whether, where, places), turn)
        every = torch.arange(places, device=where.device).expand_as(what)
        drawn, where, what = (
            torch.cat(pair, 1)
            for pair in ((kept.z.whether, drawn), (kept.z.where, every), (kept.z.what, what))
        )
        key = turns.gather(1, where).masked_fill(~drawn, LAST)
        index = key.sort(dim=1, stable=True).indices[:, :steps]
        return PartSequence(*(value.gather(1, index) for value in (drawn, where, what))).canonical()

    def _walk(self, kept: Kept, drawn: Tensor, what: Tensor, generator: Noise) -> None:
        """Visits free places repeatedly in random order. Updates `drawn` and `what` (B, L) in place."""
        free = ~kept.places
        noise = uniform(free.shape, generator, self.energy)
        sites, count = noise.masked_fill(~free, 2.0).argsort(1), free.sum(1)  # free places come first
        rows = count.nonzero()[:, 0]
        for turn in range(self.effort.visits if len(rows) else 0):
            site = sites[rows, turn % count[rows]]
            on, part = self._visit(kept[rows], site, drawn[rows], what[rows], generator)
            drawn[rows, site], what[rows, site] = on, part

    def _visit(
        self, kept: Kept, site: Tensor, drawn: Tensor, what: Tensor, generator: Noise
    ) -> tuple[Tensor, Tensor]:
        """Draws *whether* and *what* at the place `site` (R,) given all other places; returns both, (R,).

        The choice is among no part, the present part if there is one, and new parts from the proposal q. The
        weights p(none) and p(part) / (m q(part)) keep the distribution invariant (Andrieu, Lee and Vihola
        2018, "i-SIR").
        """
        m, at, column = self.effort.candidates, torch.arange(len(site), device=site.device), site[:, None]
        present, part = drawn[at, site], what[at, site]
        without, with_it = drawn.scatter(1, column, False), drawn.scatter(1, column, True)
        empty = self.arranged(kept, without, what)
        probe = self.arranged(kept, with_it, what.scatter(1, column, self.typical.expand_as(column)))
        logits = self.prior(PartSequence.cat([empty, probe])).float32().map(lambda x: x / self.temperature)
        log_none = log_prob(logits.map(lambda x: x[: len(site)]), empty)
        step = (probe.whether & (probe.where == column)).byte().argmax(1)
        log_q = logits.what[len(site) + at, step].log_softmax(-1) + math.log(1 - UNIFORM)
        log_q = torch.logaddexp(log_q, torch.full_like(log_q, math.log(UNIFORM / log_q.shape[1])))
        parts = categorical_sample(log_q[:, None].expand(-1, m, -1), generator)
        parts[:, 0] = torch.where(present, part, parts[:, 0])
        log_part = self._log_prob(kept, site, with_it, what, parts) - log_q.gather(1, parts) - math.log(m)
        full = (empty.whether.sum(1) == self.spec.steps)[:, None]
        weights = torch.cat([log_none[:, None], log_part.masked_fill(full, -math.inf)], 1)
        chosen = categorical_sample(weights, generator)
        return chosen > 0, parts[at, (chosen - 1).clamp(min=0)]

    def _log_prob(self, kept: Kept, site: Tensor, drawn: Tensor, what: Tensor, parts: Tensor) -> Tensor:
        """log p, (R, m) nats, of the drawings with each candidate of `parts` (R, m) at the place `site`."""
        m = parts.shape[1]
        column = site.repeat_interleave(m)[:, None]
        each = what.repeat_interleave(m, 0).scatter(1, column, parts.flatten()[:, None])
        z = self.arranged(kept.repeat(m), drawn.repeat_interleave(m, 0), each)
        logits = self.prior(z).float32().map(lambda x: x / self.temperature)
        return log_prob(logits, z).view(-1, m)


def evidence_of(grid: Grid, bank: Tensor, canvas: Tensor, sketch: Tensor) -> Tensor:
    """log p(ink | part) at each place, (B, L, K + 1), 0 outside the sketch. The last entry is for no part.

    bank: parts (K, C, P, P). canvas: (B, C, h, w), with ink drawn by hand at the places `sketch` (B, L) bool.
    An inked pixel is modelled as the part's pixel plus Gaussian noise of standard deviation SKETCH_NOISE.
    Blank pixels give no evidence, so a part may extend over them.
    """
    paper = grid.background
    inked = ((canvas - paper).abs().amax(1, keepdim=True) > INK).to(canvas)
    cover = grid.fold_sum(grid.unfold(torch.ones_like(inked)))  # a pixel in several places counts once
    weight = grid.of_ink.unfold((inked / cover).expand_as(canvas)).flatten(2)  # (B, L, D); 0 off the canvas
    pixels, parts = grid.unfold(canvas).flatten(2), bank.flatten(1)
    error = (weight * pixels.square()).sum(2, keepdim=True)
    error = error - 2 * (weight * pixels) @ parts.T + weight @ parts.square().T
    none = (weight * (pixels - paper).square()).sum(2, keepdim=True)
    return torch.cat([error, none], 2) * sketch[..., None] / (-2 * SKETCH_NOISE**2)


def require_kept(z: PartSequence, keep: Tensor, prior: StepPrior) -> Kept:
    """Returns the steps of z (B, T) at the places `keep` (B, L) bool. Assumes that the prior can draw z.

    Raises ValueError if z has more than one part at a kept place in order aligned.
    """
    z = z.canonical()
    z = PartSequence(z.whether & keep.gather(1, z.where), z.where, z.what).canonical()
    parts = z.where.new_zeros(keep.shape).scatter_add(1, z.where, z.whether.long())
    if prior.spec.aligned and (parts > 1).any():
        raise ValueError(f"z has {int(parts.max())} parts at a kept place; order aligned has one")
    return Kept(z, keep)
