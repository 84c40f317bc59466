"""The posterior: what each place draws, and drawings in every order; subsets of T places, by enumeration."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Categorical

from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.posterior import Posterior
from npdraw_dist.nn.steps import NEVER, likeliest_subset, log_normalizer
from tests.helpers.tiny_models import (
    all_drawings,
    assert_frequencies,
    seeded,
    shaken,
    tiny_model,
    tiny_spec,
)

# Three places, of which at most two are drawn.
THREE: dict[str, Any] = {"image_shape": (1, 2, 6), "steps": 2}
each_kind = pytest.mark.parametrize(
    ("order", "network", "size"),
    [("aligned", "ours", {}), ("raster", "ours", THREE), ("aligned", "authors", {})],
)


@pytest.mark.parametrize("stride", [2, 1])
def test_an_image_does_not_see_its_batch(stride: int) -> None:
    spec = tiny_spec("raster", image_shape=(1, 4, 6), stride=stride, parts=3, steps=6)
    torch.manual_seed(0)
    posterior = Posterior(spec)
    shaken(posterior)
    x = torch.rand(5, 1, 4, 6)
    whole, alone = posterior(x), posterior(x[2:3])
    assert whole.where is None
    torch.testing.assert_close(whole.whether[2:3], alone.whether, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.what[2:3], alone.what, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole.what[2], whole.what[3])


@each_kind
def test_q_enumerates_to_one(order: str, network: str, size: dict[str, Any]) -> None:
    spec = tiny_spec(order, "independent", network, **size)
    model, z = tiny_model(spec), all_drawings(spec)
    q = model.infer(torch.rand(1, *spec.image_shape)).tile(len(z))
    drawn, choice = z.whether.float(), torch.zeros(len(z))
    if q.where is None:
        drawn = torch.zeros(len(z), spec.grid.places).scatter_add(1, z.where, drawn)
    for row, step in z.whether.nonzero().tolist():
        place = step if q.where is not None else int(z.where[row, step])
        choice[row] += Categorical(logits=q.what[row, place]).log_prob(z.what[row, step])
        if q.where is not None:
            choice[row] += Categorical(logits=q.where[row, step]).log_prob(z.where[row, step])
    expected = choice + Bernoulli(logits=q.whether).log_prob(drawn).sum(1)
    # What remains if more than T places may not be drawn.
    expected -= expected.logsumexp(0)
    log_q = model.layout.log_prob(q, z)
    torch.testing.assert_close(log_q, expected)
    assert float(log_q.detach().exp().sum()) == pytest.approx(1, abs=1e-5)


@each_kind
@torch.no_grad()
def test_draws_have_the_frequencies_of_q(order: str, network: str, size: dict[str, Any]) -> None:
    spec, n = tiny_spec(order, "independent", network, **size), 10_000
    model, every = tiny_model(spec), all_drawings(spec)
    q = model.infer(torch.rand(1, *spec.image_shape))
    z = model.sample_posterior(q.tile(n), seeded()).canonical()
    every = every.canonical() if order == "raster" else every
    if spec.where_given:  # where of a step that draws nothing is its place
        z = PartSequence(z.whether, every.where[:1].expand(n, -1), z.what)
    assert_frequencies(model, q, z, every)


@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_a_draw_is_in_the_order_of_its_places(order: str) -> None:
    steps = 12 if order == "aligned" else 7
    spec = tiny_spec(order, image_shape=(1, 6, 8), parts=5, steps=steps)
    model = tiny_model(spec)
    z = model.sample_posterior(model.infer(torch.rand(64, 1, 6, 8)), seeded())
    energy, chosen = torch.zeros(64, spec.grid.places), torch.zeros(64, spec.grid.places)
    part_energy = model.bank_parts.square().sum((1, 2, 3))[z.what]
    chosen.scatter_add_(1, z.where, z.whether.float())
    energy.scatter_add_(1, z.where, part_energy * z.whether)
    assert float(chosen.max()) == 1, "no place is drawn twice"
    whether, where = ORDERS[order].arrange(chosen > 0, energy, spec.grid, spec.steps)
    assert torch.equal(whether, z.whether)
    assert torch.equal(where[whether], z.where[whether])


@pytest.mark.parametrize("downscale", [1, 2])
def test_q_starts_as_a_soft_parse(downscale: int) -> None:
    """Before training the most likely parts of a drawn image are those that drew it."""
    steps = (12 // downscale // 3) ** 2
    size: dict[str, Any] = {
        "image_shape": (1, 12, 12),
        "downscale": downscale,
        "patch": 3,
        "stride": 3,
        "parts": 6,
    }
    spec = tiny_spec("aligned", steps=steps, **size)
    torch.manual_seed(0)
    posterior = Posterior(spec)
    bank = (torch.rand(6, 1, 3, 3) > 0.5).float()
    posterior.set_bank(bank)
    what = torch.randint(6, (50, spec.steps))
    canvas = spec.grid.fold_sum(bank[what])
    image = canvas.repeat_interleave(downscale, 2).repeat_interleave(downscale, 3)
    q = posterior(image)
    same = (bank[q.what.argmax(-1)] == bank[what]).flatten(2).all(-1)
    assert same.float().mean() > 0.97
    drawn = bank[what].flatten(2).sum(-1) > 0
    assert (q.whether[drawn] > 0).float().mean() > 0.97


def subsets(elements: int, most: int) -> torch.Tensor:
    """(N, L) bool: all of them."""
    rows = [row for row in itertools.product([False, True], repeat=elements) if sum(row) <= most]
    return torch.tensor(rows)


def logits(elements: int) -> torch.Tensor:
    return 2 * torch.randn(3, elements, generator=seeded(elements))


def test_the_likeliest_subset_maximises_the_weight() -> None:
    w = logits(6)
    every = subsets(6, 2)
    best = every[(w @ every.float().T).argmax(1)]
    assert torch.equal(likeliest_subset(w, 2), best)
    assert not likeliest_subset(-torch.ones(1, 4), 9).any()


def one_by_one(w: torch.Tensor, most: int) -> torch.Tensor:
    """(B, T + 1): the log-weight of all subsets of j elements, by recursion."""
    table = torch.full((len(w), most + 1), NEVER)
    table[:, 0] = 0.0
    for element in w.unbind(1):
        with_it = F.pad(table[:, :-1] + element[:, None], (1, 0), value=NEVER)
        table = torch.logaddexp(table, with_it)
    return table


@pytest.mark.parametrize(("elements", "most"), [(1, 1), (6, 9), (7, 3), (36, 20), (33, 32)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_normaliser_is_that_of_the_recursion(elements: int, most: int, scale: float) -> None:
    w = scale * torch.randn(5, elements, generator=seeded(1))
    ours, theirs = w.clone().requires_grad_(), w.clone().requires_grad_()
    value = log_normalizer(ours, most)
    expected = one_by_one(theirs, most).logsumexp(1)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
