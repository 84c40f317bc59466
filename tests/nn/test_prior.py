"""The prior is causal, sums to 1, and its cached sampler draws from what it scores."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.prior import StepPrior
from npdraw_dist.nn.steps import StepLogits
from tests.helpers.tiny_models import all_sequences, random_sequence, tiny_prior, tiny_spec

KINDS = [
    *itertools.product(["aligned", "raster"], ["chained", "independent"], ["ours"], ["joint"]),
    *itertools.product(["aligned", "raster"], ["chained"], ["ours"], ["factorised"]),
    ("aligned", "independent", "authors", "joint"),
]
NAMES = ("whether", "where", "what")
LONGER: dict[str, Any] = {"image_shape": (1, 4, 6), "parts": 3, "steps": 6}  # six places


def has_where(kind: tuple[str, ...]) -> bool:
    return kind[0] != "aligned" or kind[2] == "authors"


def changed(z: PartSequence, t: int, name: str, modulo: int) -> PartSequence:
    """z with another `name` at step t."""
    values = {key: getattr(z, key).clone() for key in ("whether", "where", "what")}
    column = values[name][:, t]
    values[name][:, t] = ~column if name == "whether" else (column + 1) % modulo
    return PartSequence(**values)


def equal_up_to(a: Tensor | None, b: Tensor | None, steps: int) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a[:, :steps], b[:, :steps])


@pytest.mark.parametrize(
    ("order", "heads", "network", "table", "name"),
    [(*kind, name) for kind in KINDS for name in NAMES if name != "where" or has_where(kind)],
)
def test_a_step_changes_no_logits_up_to_itself(
    order: str, heads: str, network: str, table: str, name: str
) -> None:
    spec = tiny_spec(order, heads, network, table, **LONGER)
    prior, z = tiny_prior(spec), random_sequence(spec, 4)
    z = PartSequence(torch.ones_like(z.whether), z.where, z.what)
    sizes = {"whether": 2, "where": spec.grid.places, "what": spec.parts}
    base = prior(z)
    for t in range(spec.steps):
        other = prior(changed(z, t, name, sizes[name]))
        assert equal_up_to(base.whether, other.whether, t + 1)
        assert equal_up_to(base.where, other.where, t + 1)
        chained = name == "where" and heads == "chained"  # p(what_t | where_t)
        assert equal_up_to(base.what, other.what, t if chained else t + 1)
        if chained:
            assert not torch.allclose(base.what[:, t], other.what[:, t])
        for later in range(t + 1, spec.steps):
            assert not torch.allclose(base.whether[:, later], other.whether[:, later])


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_a_tiny_prior_enumerates_to_one(order: str, heads: str, network: str, table: str) -> None:
    spec = tiny_spec(order, heads, network, table)
    z = all_sequences(spec)
    assert len(z) == (25 if has_where((order, heads, network)) else 9)
    total = tiny_prior(spec).log_prob(z).logsumexp(0).exp()
    assert float(total.detach()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_ignored_where_and_what_do_not_count(order: str, heads: str, network: str, table: str) -> None:
    spec = tiny_spec(order, heads, network, table, **LONGER)
    prior, z, noise = tiny_prior(spec), random_sequence(spec, 16), random_sequence(spec, 16, seed=1)
    where = torch.where(z.whether, z.where, noise.where)
    what = torch.where(z.whether, z.what, noise.what)
    assert not torch.equal(what, z.what)
    torch.testing.assert_close(
        prior.log_prob(PartSequence(z.whether, where, what)), prior.log_prob(z), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(prior.log_prob(z.canonical()), prior.log_prob(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_log_prob_is_the_sum_of_the_steps_distributions(
    order: str, heads: str, network: str, table: str
) -> None:
    spec = tiny_spec(order, heads, network, table, **LONGER)
    prior, z = tiny_prior(spec), random_sequence(spec, 5)
    logits = prior(z)
    expected = torch.distributions.Bernoulli(logits=logits.whether).log_prob(z.whether.double())
    choice = torch.distributions.Categorical(logits=logits.what).log_prob(z.what)
    if logits.where is not None:
        choice = choice + torch.distributions.Categorical(logits=logits.where).log_prob(z.where)
    torch.testing.assert_close(prior.log_prob(z), (expected + choice * z.whether).sum(1))


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_cached_states_are_the_teacher_forced_ones(
    order: str, heads: str, network: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(order, heads, network, table, **LONGER)
    prior = tiny_prior(spec)
    states: list[Tensor] = []
    draw = StepPrior.draw_step

    def recording(self: StepPrior, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        states.append(h.clone())
        return draw(self, h, *rest)

    monkeypatch.setattr(StepPrior, "draw_step", recording)
    z = prior.sample(32, torch.Generator().manual_seed(0))
    h = torch.stack(states, 1)
    again, forced = prior.logits(h, z.where), prior(z)
    for a, b in [(again.whether, forced.whether), (again.where, forced.where), (again.what, forced.what)]:
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert z.whether.any()
    assert not z.whether.all()


def assert_greedy(z: PartSequence, logits: StepLogits) -> None:
    assert torch.equal(z.whether, logits.whether > 0)
    if logits.where is not None:
        assert torch.equal(z.where[z.whether], logits.where.argmax(-1)[z.whether])
    assert torch.equal(z.what[z.whether], logits.what.argmax(-1)[z.whether])


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_a_cold_sample_is_the_argmax_of_the_forward_logits(
    order: str, heads: str, network: str, table: str
) -> None:
    spec = tiny_spec(order, heads, network, table, **LONGER)
    drawn = 0
    for seed in range(4):
        prior = tiny_prior(spec, seed)
        z = prior.sample(3, torch.Generator().manual_seed(seed), temperature=1e-6)
        assert_greedy(z, prior(z))
        drawn += int(z.whether.sum())
    assert 0 < drawn < 4 * 3 * spec.steps


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_samples_have_the_frequencies_of_log_prob(order: str, heads: str, network: str, table: str) -> None:
    spec = tiny_spec(order, heads, network, table)
    prior, n = tiny_prior(spec), 20_000
    z = prior.sample(n, torch.Generator().manual_seed(0))
    support = all_sequences(spec)

    def code(z: PartSequence) -> Tensor:
        z, base = z.canonical(), torch.tensor(64)
        step = z.whether * 16 + z.where * 4 + z.what
        return (step * base ** torch.arange(z.steps)).sum(1)

    p = prior.log_prob(support).exp()
    counts = (code(z)[:, None] == code(support)).double().sum(0)
    assert counts.sum() == n
    assert ((counts / n - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_temperature_divides_the_logits_of_the_first_step() -> None:
    spec = tiny_spec("raster")
    prior, n = tiny_prior(spec), 20_000
    with torch.no_grad():
        first = prior(all_sequences(spec)[:1])
    z = prior.sample(n, torch.Generator().manual_seed(1), temperature=3.0)
    drawn = z.whether[:, 0]
    chance = float(torch.sigmoid(first.whether[0, 0] / 3))
    assert float(drawn.double().mean()) == pytest.approx(chance, abs=0.016)
    assert first.where is not None
    places = torch.bincount(z.where[drawn, 0], minlength=2) / drawn.sum()
    torch.testing.assert_close(places.double(), (first.where[0, 0] / 3).softmax(0), rtol=0, atol=0.025)


def test_the_generator_alone_decides() -> None:
    spec = tiny_spec("raster", **LONGER)
    prior = tiny_prior(spec)
    a, b, c = (prior.sample(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("whether", "where", "what"))
    assert not torch.equal(a.where, c.where)


def test_aligned_samples_draw_step_t_at_place_t() -> None:
    spec = tiny_spec("aligned", **LONGER)
    z = tiny_prior(spec).sample(8, torch.Generator().manual_seed(0))
    assert torch.equal(z.where, torch.arange(6).expand(8, 6))


def test_top_k_and_distinct_places_change_the_sampler() -> None:
    spec = tiny_spec("raster", **LONGER)
    prior = tiny_prior(spec)
    one = prior.sample(64, torch.Generator().manual_seed(0), top_k=1)
    assert torch.equal(one.what[one.whether], prior(one).what.argmax(-1)[one.whether])

    def repeats(z: PartSequence) -> int:
        places = [w[on].tolist() for on, w in zip(z.whether, z.where, strict=True)]
        return sum(len(p) - len(set(p)) for p in places)

    assert repeats(prior.sample(64, torch.Generator().manual_seed(0))) > 0
    distinct = prior.sample(64, torch.Generator().manual_seed(0), distinct_places=True)
    assert repeats(distinct) == 0
    assert distinct.whether.sum() > 64


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_nothing_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        tiny_prior(tiny_spec()).sample(1, temperature=temperature)


@pytest.mark.parametrize(("order", "heads", "network", "table"), KINDS)
def test_rows_that_are_exchanged_go_on_with_their_own_past(
    order: str, heads: str, network: str, table: str
) -> None:
    spec = tiny_spec(order, heads, network, table, **LONGER)
    prior, generator = tiny_prior(spec), torch.Generator().manual_seed(0)
    where = torch.zeros(16, spec.steps, dtype=torch.int64)
    z = PartSequence(where.bool(), where, where.clone())
    states, index = prior.states(z), None
    for t in range(spec.steps):
        with torch.no_grad():
            h = states.send(index)
            forced = prior(z)
        found = prior.logits(h[:, None], z.where[:, t : t + 1]).whether[:, 0]
        torch.testing.assert_close(found, forced.whether[:, t], rtol=0, atol=1e-11)
        z.whether[:, t], z.where[:, t], z.what[:, t] = prior.draw_step(h, t, generator)
        index = torch.randint(16, (16,), generator=generator)
        for value in vars(z).values():
            value.copy_(value[index])
