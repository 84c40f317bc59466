"""Computes proposals of the prior: the next part of a drawing, and likely drawings to begin with.

A drawing is a `PartSequence` of one image, (1, T). Shapes: B drawings, M particles, T steps, L places,
K parts, C candidates of a place, h x w canvas.
"""

import torch
from torch import Tensor

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn import editing
from npdraw_dist.nn.completion import Effort, require_kept
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.particles import AlignedRules, first_parts, weighted_particles
from npdraw_dist.nn.steps import log_prob
from npdraw_dist.serve.schemas import NextResponse, PartChance

# A user waits for completions, so they are computed with less effort than the default, `Effort()`.
QUICK = Effort(particles=16, visits=0, candidates=1)
PARTICLES = 64  # so the standard error of each place's probability is at most 0.06
CONTEXTS, CANDIDATES = 3, 8  # numbers of particles and of candidate parts that rank the parts of a place
CANDIDATE_DRAWINGS = 64  # samples from which examples are chosen


def next_part(model: NPDraw, z: PartSequence, place: int | None, n: int) -> NextResponse:
    """Where the prior draws next in z (1, T), and the n likeliest parts at `place` (None: the likeliest).

    The parts that z has at `place` are removed first. In a free order the answer is p(whether) p(where) of
    the first step that does not draw, and p(what | where) (paper eq. 1-2). In `aligned` order the prior
    visits the places in turn, so there is no next step. Instead, sequential Monte Carlo (`nn.particles`)
    samples the other places that are drawn given z, and each of these is next with equal probability. The
    parts at a place are ranked by p(what | all other places), averaged over CONTEXTS particles, among the
    CANDIDATES parts that are likeliest given the earlier places.
    """
    if place is not None:
        mask = torch.zeros(model.grid.places, dtype=torch.bool, device=z.where.device)
        mask[place] = True
        z = editing.remove(z, mask, model.spec.order)
    n = min(n, model.spec.parts)
    with torch.no_grad():
        return _aligned(model, z, place, n) if model.spec.aligned else _free(model, z, place, n)


def _free(model: NPDraw, z: PartSequence, place: int | None, n: int) -> NextResponse:
    first = (~z.whether).sort(dim=1, stable=True).indices  # the steps that draw come first
    z = z.map(lambda values: values.gather(1, first)).canonical()
    step = int(z.whether.sum())
    full = step == z.steps  # no step is left
    step = min(step, z.steps - 1)
    logits = model.prior(z).float32()
    assert logits.where is not None
    draws = torch.sigmoid(logits.whether[0, step].double()) * (not full)
    places = logits.where[0, step].double().softmax(-1) * draws
    at = int(places.argmax()) if place is None else place
    where = z.where.clone()
    where[0, step] = at
    what = model.prior(PartSequence(z.whether, where, z.what)).float32().what[0, step].double().softmax(-1)
    best = what.topk(n)
    return _answer(places, float(1 - draws), at, best.indices, best.values)


def _aligned(model: NPDraw, z: PartSequence, place: int | None, n: int) -> NextResponse:
    drawn, _ = first_parts(z, model.grid.places)
    generator = torch.Generator(model.device).manual_seed(0)  # equal requests get equal answers
    rules = AlignedRules(model.prior, require_kept(z, drawn, model.prior).repeat(PARTICLES), 1.0)
    found, log_weight = weighted_particles(model.prior, rules, PARTICLES, generator)
    weight = log_weight[0].double().softmax(0)
    new = (first_parts(found, model.grid.places)[0] & ~drawn).double()  # (M, L)
    places = (weight[:, None] * new / new.sum(1, keepdim=True).clamp(min=1)).sum(0)
    stop = float((weight * (new.sum(1) == 0)).sum())
    at = int(places.argmax()) if place is None else place
    contexts = found[weight.multinomial(CONTEXTS, replacement=True, generator=generator)]
    parts, chances = _parts_of_place(model, contexts, at, n)
    return _answer(places, stop, at, parts, chances)


def _answer(places: Tensor, stop: float, place: int, parts: Tensor, chances: Tensor) -> NextResponse:
    pairs = zip(parts.tolist(), chances.tolist(), strict=True)
    likely = [PartChance(part=part, probability=chance) for part, chance in pairs]
    return NextResponse(places=places.tolist(), stop=stop, parts=likely, place=place)


def _parts_of_place(model: NPDraw, z: PartSequence, place: int, n: int) -> tuple[Tensor, Tensor]:
    """The n likeliest parts at `place` given the other places of drawings z (B, L), and their probabilities.

    Each drawing is weighted by its probability that a part is drawn at `place`.
    """
    count = min(max(n, CANDIDATES), model.spec.parts)
    past = model.prior(z).float32().what[:, place].softmax(-1).mean(0)
    candidates = past.topk(count).indices
    rows = [z.map(torch.clone) for _ in range(count + 1)]  # the last row draws nothing at the place
    for row, part in zip(rows, candidates, strict=False):
        row.whether[:, place], row.what[:, place] = True, part
    rows[-1].whether[:, place] = False
    each = PartSequence.cat(rows)
    log_p = log_prob(model.prior(each).float32(), each).double().view(count + 1, len(z))
    drawn = log_p.softmax(0)[:-1].sum(1)  # (C,), summed over the drawings
    share = past[candidates].sum().double()  # the other parts share the remaining probability
    best = (drawn / drawn.sum() * share).topk(n)
    return candidates[best.indices], best.values


@torch.no_grad()
def likely(model: NPDraw, drawings: Drawings, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` rows of B drawings that make good examples, and log p(z) in nats per part of each.

    Candidates are the likelier half of the drawings with at least the median number of parts, since log p
    alone would choose the emptiest. The likeliest is chosen first, and then, each time, the drawing whose
    canvas differs most from those of the drawings chosen before.
    """
    parts = drawings.z.whether.sum(1)
    score = model.prior_log_prob(drawings.z) / parts.clamp(min=1)
    rows = ((parts >= parts.float().median()) & (parts > 0)).nonzero()[:, 0]
    rows = rows[score[rows].argsort(descending=True)][: max(len(rows) // 2, count)]
    if not len(rows):
        return rows, score[rows]
    canvases = drawings.canvas[rows].flatten(1)
    distance = torch.cdist(canvases, canvases)
    chosen = [0]
    while len(chosen) < min(count, len(rows)):
        nearest = distance[chosen].amin(0)
        if float(nearest.max()) == 0:  # every other drawing equals a chosen one
            break
        chosen.append(int(nearest.argmax()))
    rows = rows[chosen]
    return rows, score[rows]


@torch.no_grad()
def extent(model: NPDraw) -> float:
    """The share of the canvas's side that a drawing's longer side takes, as the median of prior samples.

    It is 1.0 if no sample draws anything.
    """
    z = model.sample_prior(CANDIDATE_DRAWINGS, seed=0)
    sides = []
    for ink in (model.grid.ink(model.render(z)).amax(1) > 0.2).cpu():  # (h, w)
        spans = [drawn.nonzero()[:, 0] for drawn in (ink.any(1), ink.any(0))]
        if len(spans[0]):
            shares = [int(at[-1] - at[0] + 1) / size for at, size in zip(spans, ink.shape, strict=True)]
            sides.append(max(shares))
    return float(torch.tensor(sides).median()) if sides else 1.0
