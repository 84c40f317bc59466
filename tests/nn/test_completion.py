"""Completions have exactly the kept parts, and the rest follows the enumerated conditional distribution."""

from functools import cache
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.nn.completion import INK, SKETCH_NOISE, Completer, Effort, evidence_of
from npdraw_dist.nn.drawings import Drawings
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.particles import FreeRules, Kept, weighted_particles
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import (
    every_arranged,
    random_sequence,
    same,
    seeded,
    shaken,
    tiny_model,
    tiny_prior,
    tiny_spec,
)

NAIVE = Effort(particles=1, visits=0)  # from left to right, with what is kept put in by force
EFFORTS = {
    "naive": NAIVE,
    "particles": Effort(particles=50, visits=0),
    "walk": Effort(particles=1, visits=18, candidates=3),
}
BOTH = Effort(particles=8, visits=8, candidates=4)
DRAWS = 1500
ORDER_NAMES = list(ORDERS)


def spec_of(order: str, **changes: Any) -> ModelSpec:
    """Four places in aligned order; in other orders at most three of six."""
    size: dict[str, Any] = {"image_shape": (1, 4, 4), "steps": 4}
    if order != "aligned":
        size = {"image_shape": (1, 4, 6), "steps": 3}  # 2 x 3 places
    return tiny_spec(order, **size | changes)


def strong(spec: ModelSpec, seed: int) -> tuple[StepPrior, Tensor]:
    """A prior whose steps depend much on those before, and a bank."""
    prior = tiny_prior(spec, seed)
    shaken(prior, 0.4)
    bank = torch.rand(spec.parts, 1, 2, 2)
    prior.set_bank(bank)
    return prior, bank


def cells(z: PartSequence, places: int) -> Tensor:
    """(B, L): 0 for a place without a part, else 1 + its part. No place has two."""
    on = torch.nn.functional.one_hot(z.where, places) * z.whether[..., None]
    assert int(on.sum(1).max()) <= 1
    return (on * (z.what + 1)[..., None]).sum(1)


def distance(spec: ModelSpec, found: PartSequence, support: PartSequence, p: Tensor) -> float:
    """Total variation between the frequencies of `found` and p, the probabilities of `support`."""
    base = (spec.parts + 1) ** torch.arange(spec.grid.places)
    codes = (cells(support, spec.grid.places) * base).sum(1)
    counts = ((cells(found, spec.grid.places) * base).sum(1)[:, None] == codes).double().sum(0)
    assert counts.sum() == len(found), "a completion is no well-formed drawing"
    return float((counts / len(found) - p).abs().sum() / 2)


def copies(z: PartSequence, n: int) -> PartSequence:
    return z.map(lambda value: value.repeat_interleave(n, 0))


def given(prior: StepPrior, support: PartSequence, z: PartSequence, keep: Tensor) -> Tensor:
    """p(drawing | the parts of z at the places `keep`), (N,)."""
    fits = (cells(support, len(keep)) == cells(z, len(keep)))[:, keep].all(1)
    return prior.log_prob(support).detach().masked_fill(~fits, -torch.inf).softmax(0)


# The drawings depend much on what comes later in them, so that the naive sampler is far off.
CASES = [
    ("aligned", {}, [2, 3], 6),
    ("aligned", {"heads": "independent", "network": "authors"}, [2, 3], 1),
    ("raster", {}, [3, 4, 5], 9),
    ("path", {}, [1, 4, 5], 8),
    ("ranked", {"parts": 3}, [3, 4, 5], 5),
]


@pytest.mark.few(2)
@pytest.mark.parametrize(("order", "changes", "keep", "seed"), CASES)
def test_completions_have_the_conditional_distribution(
    order: str, changes: dict[str, Any], keep: list[int], seed: int
) -> None:
    spec = spec_of(order, **changes)
    prior, bank = strong(spec, seed)
    support, generator = every_arranged(spec, bank), seeded(seed)
    kept = torch.zeros(spec.grid.places, dtype=torch.bool)
    kept[keep] = True
    z = support[torch.multinomial(prior.log_prob(support).detach().softmax(0), 1, generator=generator)]
    p, found = given(prior, support, z, kept), {}
    exact = distance(spec, support[torch.multinomial(p, DRAWS, True, generator=generator)], support, p)
    for name, effort in EFFORTS.items():
        drawn = Completer(prior, bank, 1.0, effort)(copies(z, DRAWS), kept.expand(DRAWS, -1), generator)
        found[name] = distance(spec, drawn, support, p)
    naive = found.pop("naive")
    for name, value in found.items():
        assert value < exact + 0.04, name
        # The authors' steps depend little on later ones.
        assert naive > 3 * value or "network" in changes, name


@pytest.mark.few(1)
@pytest.mark.parametrize("heads", ["chained", "independent"])
def test_a_finished_sketch_has_the_posterior_distribution(heads: str) -> None:
    """The posterior is p(z | a kept place) times p(ink | z), enumerated; blank pixels do not count."""
    spec = spec_of("aligned", heads=heads)
    prior, bank = strong(spec, 6)
    grid, support, generator = spec.grid, every_arranged(spec, bank), seeded(6)
    canvas = render(bank, support[5:6], grid)
    canvas[..., :1] = grid.background
    keep, sketch = torch.tensor([True, False, False, False]), torch.tensor([False, True, False, True])
    evidence = evidence_of(grid, bank, canvas, sketch[None])
    ink = ((canvas - grid.background).abs() > INK) & grid.fold_sum(
        sketch[None, :, None, None, None] * torch.ones(1, 4, 1, 2, 2)
    ).bool()
    error = ((render(bank, support, grid) - canvas).square() * ink).sum((1, 2, 3))
    assert 0 < ink.sum() < ink.numel()
    p = given(prior, support, support[5:6], keep) * torch.exp(-error / (2 * SKETCH_NOISE**2))
    p = p / p.sum()
    exact = distance(spec, support[torch.multinomial(p, DRAWS, True, generator=generator)], support, p)
    completer = Completer(prior, bank, 1.0, EFFORTS["particles"])
    many = copies(support[5:6], DRAWS), keep.expand(DRAWS, -1)
    drawn = completer(*many, generator, evidence.expand(DRAWS, -1, -1))
    assert distance(spec, drawn, support, p) < exact + 0.04
    without = completer(*many, generator, torch.zeros_like(evidence).expand(DRAWS, -1, -1))
    assert distance(spec, without, support, p) > exact + 0.2


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_what_lies_off_the_canvas_is_no_ink(background: float) -> None:
    grid = Grid(6, 6, 4, 4, background=background)  # 2x2 places, which reach over the edges
    bank = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    paper = torch.full((1, 1, 6, 6), background)
    evidence = evidence_of(grid, bank, paper, torch.ones(1, grid.places, dtype=torch.bool))
    assert not evidence.any()


def test_a_sketch_of_images_is_followed_by_its_own_ink() -> None:
    model = tiny_model(tiny_spec())
    x = torch.zeros(64, *model.spec.image_shape)
    x[..., :1] = 1  # half of a place
    nothing = torch.zeros(model.grid.places, dtype=torch.bool)
    followed, free = (
        model.complete(x, nothing, seed=0, sketch=sketch, temperature=1.0) for sketch in (":,:", None)
    )
    assert isinstance(followed, Drawings)
    assert isinstance(free, Drawings)
    away, before = (((one.canvas - x).square() * x).sum() for one in (followed, free))
    assert away < before
    path = tiny_model(tiny_spec("path"))
    with pytest.raises(UserError, match="needs order aligned; the model draws in path"):
        path.complete(x, nothing, seed=0, sketch=[1])


@pytest.mark.parametrize("order", ORDER_NAMES)
def test_to_forget_places_and_complete_them_keeps_the_distribution(order: str) -> None:
    """Each drawing keeps places of its own."""
    spec = spec_of(order)
    prior, bank = strong(spec, 7)
    support, generator = every_arranged(spec, bank), seeded()
    p = prior.log_prob(support).detach().softmax(0)
    z = support[torch.multinomial(p, DRAWS, True, generator=generator)]
    later = torch.linspace(0.1, 0.9, spec.grid.places)
    keep = torch.rand(len(z), spec.grid.places, generator=generator) < later
    exact, naive, ours = (
        distance(spec, drawn, support, p)
        for drawn in (
            z,
            Completer(prior, bank, 1.0, NAIVE)(z, keep, generator),
            Completer(prior, bank, 1.0, BOTH)(z, keep, generator),
        )
    )
    assert ours < exact + 0.03
    assert naive > 2 * ours


def test_the_temperature_is_that_of_every_step() -> None:
    spec = spec_of("raster")
    prior, bank = strong(spec, 0)
    support, keep = every_arranged(spec, bank), torch.zeros(spec.grid.places, dtype=torch.bool)
    keep[[3, 4]] = True
    z = support[100:101]
    completer = Completer(prior, bank, 2.5, BOTH)
    found = completer(copies(z, DRAWS), keep.expand(DRAWS, -1), seeded())
    for head in (prior.whether_head, prior.where_head, prior.what_head):
        assert isinstance(head, torch.nn.Linear)
        head.weight.data.div_(2.5)
        head.bias.data.div_(2.5)
    assert distance(spec, found, support, given(prior, support, z, keep)) < 0.06


def drawn_at(z: PartSequence, keep: Tensor) -> list[list[tuple[int, int]]]:
    """The places and parts of each drawing at its kept places."""
    rows = zip(z.whether.tolist(), z.where.tolist(), z.what.tolist(), keep.tolist(), strict=True)
    return [
        sorted((w, k) for on, w, k in zip(whether, where, what, strict=True) if on and kept[w])
        for whether, where, what, kept in rows
    ]


ANY: dict[str, Any] = {"image_shape": (1, 4, 6), "parts": 3}


@cache
def any_model(order: str) -> NPDraw:
    return tiny_model(tiny_spec(order, **ANY, steps=6 if order == "aligned" else 5))


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    st.sampled_from(ORDER_NAMES),
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3),
    st.integers(0, 100),
    st.sampled_from([NAIVE, Effort(3, 2, 2)]),
)
def test_kept_places_hold_exactly_what_they_held(
    order: str, keep: list[list[bool]], seed: int, effort: Effort
) -> None:
    """This holds also for places without a part and, in a free order, for places with several."""
    model, mask = any_model(order), torch.tensor(keep)
    z = random_sequence(model.spec, len(keep), seed)
    found = model.complete(z, mask, seeded(seed), effort=effort)
    assert drawn_at(found, mask) == drawn_at(z, mask)
    for row in (~mask.all(1)).nonzero()[:, 0].tolist():
        others = [w for w, _ in drawn_at(found[row : row + 1], ~mask[row : row + 1])[0]]
        assert len(set(others)) == len(others)
        drawn = found.whether[row].tolist()
        assert order == "aligned" or drawn == sorted(drawn, reverse=True)
    if order == "aligned":
        assert torch.equal(found.where, torch.arange(6).expand_as(found.where))
    assert same(model.complete(z, mask, seeded(seed), effort=effort), found), "the generator alone decides"
    assert same(model.complete(z, torch.ones(6, dtype=torch.bool)), model.checked(z))


@pytest.mark.parametrize("order", ["raster", "path", "ranked"])
def test_particles_of_a_free_order_are_in_that_order(order: str) -> None:
    model = any_model(order)
    spec, batch, generator = model.spec, 64, seeded()
    drawing, places = NPDraw.make_layout(spec), torch.rand(batch, 6, generator=generator).argsort(1)
    what = torch.randint(3, (batch, 6), generator=generator)
    z = drawing.arranged(places < 2, what, model.bank_parts)
    keep = places < 4  # two places with a part and two without
    energy = model.bank_parts.square().sum((1, 2, 3))
    rules = FreeRules(model.prior, Kept(z, keep), 1.0, ORDERS[order], energy)  # type: ignore[arg-type]
    with torch.no_grad():
        found = weighted_particles(model.prior, rules, 1, generator)[0].canonical()
    drawn, parts = torch.zeros(batch, 6, dtype=torch.bool), torch.zeros(batch, 6, dtype=torch.int64)
    row, step = found.whether.nonzero(as_tuple=True)
    drawn[row, found.where[row, step]], parts[row, found.where[row, step]] = True, found.what[row, step]
    assert same(found, drawing.arranged(drawn, parts, model.bank_parts))
    assert int(found.whether.sum()) > int(z.whether.sum())


def test_wrong_drawings_and_settings_are_refused() -> None:
    keep = torch.arange(6) < 3
    z = PartSequence(torch.ones(1, 6, dtype=torch.bool), torch.arange(6)[None], torch.zeros(1, 6).long())
    aligned = any_model("aligned")
    drawn = tiny_model(tiny_spec("aligned", "independent", "authors", **ANY, steps=6))
    for wrong in (torch.ones(5, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool), torch.ones(6)):
        with pytest.raises(ValueError, match="keep must be"):
            aligned.complete(z, wrong)
    at_one_place = PartSequence(z.whether, z.where * 0, z.what)
    for says, model, given, temperature in (
        ("5 steps, not 6", any_model("path"), z, None),
        ("temperature is 0", aligned, z, 0),
        ("6 parts at a kept place", drawn, at_one_place, None),
    ):
        with pytest.raises(ValueError, match=says):
            model.complete(given, keep, temperature=temperature)
    with pytest.raises(ValueError, match="particles is 0"):
        Effort(particles=0)
