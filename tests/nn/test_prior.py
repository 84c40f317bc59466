"""The prior is causal, sums to 1, and its cached sampler draws from what it scores."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npdraw_dist.core.parts import PartBank, PartSequence
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.steps import StepLogits
from npdraw_dist.nn.tables import FactorisedTable, PixelTable, Table
from tests.helpers.tiny_models import (
    all_sequences,
    assert_draws_follow,
    random_sequence,
    same,
    seeded,
    tiny_prior,
    tiny_spec,
)

NAMES = ("whether", "where", "what")
LONGER: dict[str, Any] = {"image_shape": (1, 4, 6), "parts": 3, "steps": 6}  # six places
Kind = tuple[str, ...]
KINDS: list[Kind] = [
    ("aligned", "chained", "ours", "joint"),
    ("raster", "chained", "ours", "factorised"),
    ("path", "chained", "ours", "pixels"),
    ("raster", "independent", "ours", "joint"),
    ("raster", "chained", "lstm", "joint"),
    ("aligned", "independent", "authors", "joint"),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)


def changed(z: PartSequence, t: int, name: str, modulo: int) -> PartSequence:
    """z with another `name` at step t."""
    values = {key: getattr(z, key).clone() for key in NAMES}
    column = values[name][:, t]
    values[name][:, t] = ~column if name == "whether" else (column + 1) % modulo
    return PartSequence(**values)


def equal_up_to(a: Tensor | None, b: Tensor | None, steps: int) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a[:, :steps], b[:, :steps])


@each_kind
def test_a_step_changes_no_logits_up_to_itself(kind: Kind) -> None:
    spec = tiny_spec(*kind, **LONGER)
    prior, z = tiny_prior(spec), random_sequence(spec, 4)
    z = PartSequence(torch.ones_like(z.whether), z.where, z.what)
    sizes = {"whether": 2, "where": spec.grid.places, "what": spec.parts}
    base = prior(z)
    for name in NAMES if base.where is not None else ("whether", "what"):
        for t in range(spec.steps):
            other = prior(changed(z, t, name, sizes[name]))
            assert equal_up_to(base.whether, other.whether, t + 1)
            assert equal_up_to(base.where, other.where, t + 1)
            chained = name == "where" and "chained" in kind  # p(what_t | where_t)
            assert equal_up_to(base.what, other.what, t if chained else t + 1)
            if chained:
                assert not torch.allclose(base.what[:, t], other.what[:, t])
            for later in range(t + 1, spec.steps):
                assert not torch.allclose(base.whether[:, later], other.whether[:, later])


@each_kind
def test_a_tiny_prior_enumerates_to_one(kind: Kind) -> None:
    z = all_sequences(tiny_spec(*kind))
    assert len(z) == (9 if "aligned" in kind and "ours" in kind else 25)
    total = tiny_prior(tiny_spec(*kind)).log_prob(z).logsumexp(0).exp()
    assert float(total.detach()) == pytest.approx(1, abs=1e-12)


@each_kind
def test_ignored_where_and_what_do_not_count(kind: Kind) -> None:
    spec = tiny_spec(*kind, **LONGER)
    prior, z, noise = tiny_prior(spec), random_sequence(spec, 16), random_sequence(spec, 16, seed=1)
    where = torch.where(z.whether, z.where, noise.where)
    what = torch.where(z.whether, z.what, noise.what)
    assert not torch.equal(what, z.what)
    for other in (PartSequence(z.whether, where, what), z.canonical()):
        torch.testing.assert_close(prior.log_prob(other), prior.log_prob(z), rtol=0, atol=1e-12)


def assert_greedy(z: PartSequence, logits: StepLogits) -> None:
    assert torch.equal(z.whether, logits.whether > 0)
    if logits.where is not None:
        assert torch.equal(z.where[z.whether], logits.where.argmax(-1)[z.whether])
    assert torch.equal(z.what[z.whether], logits.what.argmax(-1)[z.whether])


@each_kind
def test_a_cold_sample_is_the_argmax_of_the_forward_logits(kind: Kind) -> None:
    spec = tiny_spec(*kind, **LONGER)
    drawn = 0
    for seed in range(4):
        prior = tiny_prior(spec, seed)
        z = prior.sample(3, seeded(seed), temperature=1e-6)
        assert_greedy(z, prior(z))
        drawn += int(z.whether.sum())
    assert 0 < drawn < 4 * 3 * spec.steps


@each_kind
def test_cached_states_are_the_teacher_forced_ones(kind: Kind) -> None:
    """This holds also if rows are exchanged: each continues with its own past."""
    spec = tiny_spec(*kind, **LONGER)
    prior, generator = tiny_prior(spec), seeded()
    where = torch.zeros(16, spec.steps, dtype=torch.int64)
    z = PartSequence(where.bool(), where, where.clone())
    states, index = prior.states(z), None
    for t in range(spec.steps):
        with torch.no_grad():
            h = states.send(index)
            z.whether[:, t], z.where[:, t], z.what[:, t] = prior.draw_step(h, t, generator)
            found, forced = prior.logits(h[:, None], z.where[:, t : t + 1]), prior(z)
        for name in NAMES if forced.where is not None else ("whether", "what"):
            ours, theirs = getattr(found, name)[:, 0], getattr(forced, name)[:, t]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
        index = None if t == 2 else torch.randint(16, (16,), generator=generator)  # once the rows stay
        for value in vars(z).values():
            value.copy_(value if index is None else value[index])
    assert z.whether.any()
    assert not z.whether.all()


@each_kind
def test_samples_have_the_frequencies_of_log_prob(kind: Kind) -> None:
    spec = tiny_spec(*kind)
    prior, support = tiny_prior(spec), all_sequences(spec)
    z = prior.sample(10_000, seeded())
    assert_draws_follow(prior.log_prob(support).exp(), z, support)
    if spec.where_given:
        assert torch.equal(z.where, torch.arange(spec.steps).expand_as(z.where))


def test_top_k_and_distinct_places_change_the_sampler() -> None:
    prior = tiny_prior(tiny_spec("raster", **LONGER))
    one = prior.sample(64, seeded(), top_k=1)
    assert torch.equal(one.what[one.whether], prior(one).what.argmax(-1)[one.whether])

    def repeats(z: PartSequence) -> int:
        places = [w[on].tolist() for on, w in zip(z.whether, z.where, strict=True)]
        return sum(len(p) - len(set(p)) for p in places)

    free = prior.sample(64, seeded())
    assert repeats(free) > 0
    assert same(prior.sample(64, seeded()), free), "the generator alone decides"
    distinct = prior.sample(64, seeded(), distinct_places=True)
    assert repeats(distinct) == 0
    assert distinct.whether.sum() > 64
    with pytest.raises(ValueError, match="above 0"):
        prior.sample(1, temperature=0.0)


# The table of what a step adds to the canvas. L places, K parts, W channels.
FACTORISED = tiny_spec("raster", table="factorised", image_shape=(3, 4, 6), parts=5, steps=4)  # six places


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def test_a_vector_is_the_product_of_its_place_and_its_part() -> None:
    """In NumPy, pair by pair."""
    table = tiny_prior(FACTORISED).drawn
    assert isinstance(table, FactorisedTable)
    weights = {name: value.detach().numpy() for name, value in table.state_dict().items()}
    pixels = weights["look.bank_parts"].reshape(5, -1)
    mean, deviation = weights["look.moments"]
    assert np.allclose((mean, deviation), (pixels.mean(), pixels.std()))
    pixels = (pixels - mean) / deviation
    for place in range(6):
        for part in range(5):
            hidden = weights["look.first.weight"] @ pixels[part] + weights["look.first.bias"]
            seen = weights["look.second.weight"] @ np.vectorize(gelu)(hidden) + weights["look.second.bias"]
            code = seen + weights["code"][part]
            expected = torch.from_numpy(weights["out.weight"] @ (weights["place"][place] * code))
            found = table(torch.tensor(place), torch.tensor(part))
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("table", ["joint", "factorised", "pixels"])
def test_all_ways_to_a_vector_agree(table: str) -> None:
    spec = tiny_spec("raster", table=table, image_shape=(1, 4, 6), parts=5, steps=4)
    prior = tiny_prior(spec)
    found = prior.drawn
    assert isinstance(found, Table)
    places, parts = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    torch.testing.assert_close(found(places, parts).flatten(0, 1), found.weights())
    with found.cached():
        torch.testing.assert_close(found(places, parts).flatten(0, 1), found.weights())
    assert len(found.weights().unique(dim=0)) == 30
    prior.log_prob(random_sequence(spec, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in found.parameters())


def test_drawing_computes_once_what_no_step_changes() -> None:
    """With 1,000 parts, computing codes and what is linear in them would be half of the time of a drawing."""
    prior = tiny_prior(tiny_spec("raster", table="pixels", image_shape=(1, 4, 6), parts=5, steps=4))
    assert isinstance(prior.drawn, PixelTable)
    calls = Counter[str]()
    for name in ("look", "common", "head"):
        prior.drawn.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    prior.sample(2)
    assert calls == {"look": 1, "common": 1, "head": 1}


def test_the_bank_gives_the_table_its_pixels() -> None:
    torch.manual_seed(0)
    model = NPDraw(FACTORISED).eval()
    z = random_sequence(FACTORISED, 16)
    before = model.prior_log_prob(z)
    model.set_bank(PartBank(torch.rand(model.bank_parts.shape)))
    assert not torch.allclose(model.prior_log_prob(z), before, atol=1e-6)
    again = NPDraw(FACTORISED).eval()
    again.load_state_dict(model.state_dict())  # the weights bring them too
    assert torch.equal(again.prior_log_prob(z), model.prior_log_prob(z))
