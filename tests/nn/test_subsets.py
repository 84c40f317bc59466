"""Subsets of at most T elements against their enumeration."""

import itertools

import pytest
import torch

from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import NEVER, likeliest_subset, log_normalizer, sample_subset
from tests.helpers.kernels import KernelCounter


def subsets(elements: int, most: int) -> torch.Tensor:
    """(N, L) bool: all of them."""
    rows = [row for row in itertools.product([False, True], repeat=elements) if sum(row) <= most]
    return torch.tensor(rows)


def logits(elements: int) -> torch.Tensor:
    return 2 * torch.randn(3, elements, generator=torch.Generator().manual_seed(elements))


@pytest.mark.parametrize(("elements", "most"), [(1, 1), (4, 1), (5, 2), (5, 4), (5, 5), (6, 9)])
def test_the_normaliser_is_the_sum_over_all_subsets(elements: int, most: int) -> None:
    w = logits(elements)
    weights = (w @ subsets(elements, most).float().T).double()
    torch.testing.assert_close(log_normalizer(w, most).double(), weights.logsumexp(1))


def test_its_gradient_is_the_chance_of_each_element() -> None:
    w = logits(5).requires_grad_()
    log_normalizer(w, 2).sum().backward()
    every = subsets(5, 2).float()
    chance = (w.detach() @ every.T).softmax(1) @ every
    torch.testing.assert_close(w.grad, chance)


def test_far_logits_stay_finite() -> None:
    w = torch.tensor([[90.0, -90.0, 90.0, 90.0]], requires_grad=True)
    value = log_normalizer(w, 2)
    value.backward()
    assert float(value.detach()) == pytest.approx(180 + torch.tensor(3.0).log().item(), rel=1e-5)
    assert w.grad is not None
    assert w.grad.isfinite().all()


@pytest.mark.parametrize(("elements", "most"), [(3, 1), (4, 2), (3, 3)])
def test_draws_have_the_frequencies_of_the_subsets(elements: int, most: int) -> None:
    n, w, every = 20_000, logits(elements)[:1], subsets(elements, most)
    drawn = sample_subset(w.expand(n, -1), most, torch.Generator().manual_seed(0))
    counts = (drawn[:, None] == every).all(-1).double().mean(0)
    assert float(counts.sum()) == pytest.approx(1)
    p = (w @ every.float().T).softmax(1)[0].double()
    assert ((counts - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_certain_elements_fill_the_subset() -> None:
    w = torch.tensor([[50.0, 50.0, -50.0, 50.0]]).expand(200, -1)
    drawn = sample_subset(w, 2, torch.Generator().manual_seed(0))
    assert (drawn.sum(1) == 2).all()
    assert not drawn[:, 2].any()


def test_the_likeliest_subset_maximises_the_weight() -> None:
    w = logits(6)
    every = subsets(6, 2)
    best = every[(w @ every.float().T).argmax(1)]
    assert torch.equal(likeliest_subset(w, 2), best)
    assert not likeliest_subset(-torch.ones(1, 4), 9).any()


def one_by_one(w: torch.Tensor, most: int) -> list[torch.Tensor]:
    """L + 1 tables (B, T + 1): the log-weight of all subsets of j of the first l elements, by recursion."""
    tables = [torch.full((len(w), most + 1), NEVER)]
    tables[0][:, 0] = 0.0
    for element in w.unbind(1):
        with_it = torch.full_like(tables[-1], NEVER)
        with_it = torch.cat([with_it[:, :1], tables[-1][:, :-1] + element[:, None]], 1)
        tables.append(torch.logaddexp(tables[-1], with_it))
    return tables


@pytest.mark.parametrize(("elements", "most"), [(2, 1), (7, 3), (36, 20), (64, 5), (33, 32)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_normaliser_is_that_of_the_recursion(elements: int, most: int, scale: float) -> None:
    w = scale * torch.randn(5, elements, generator=torch.Generator().manual_seed(1))
    ours, theirs = w.clone().requires_grad_(), w.clone().requires_grad_()
    value = log_normalizer(ours, most)
    expected = one_by_one(theirs, most)[-1].logsumexp(1)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("elements", "most"), [(2, 1), (7, 3), (36, 20)])
def test_draws_are_those_of_one_element_after_another(elements: int, most: int) -> None:
    w = 3 * torch.randn(50, elements, generator=torch.Generator().manual_seed(1))
    drawn = sample_subset(w, most, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    noise, tables = torch.rand(w.shape, generator=generator), one_by_one(w, most)
    left = categorical_sample(tables[-1], generator)[:, None]
    for element in range(elements - 1, -1, -1):
        without = (tables[element].gather(1, left) - tables[element + 1].gather(1, left)).exp()[:, 0]
        assert torch.equal(drawn[:, element], noise[:, element] >= without)
        left = left - drawn[:, element, None].long()


def test_elements_are_joined_in_few_kernels() -> None:
    """36 steps forward and backward were 520 kernels, and 430 to draw."""
    w = logits(36).requires_grad_()
    with KernelCounter() as counter:
        log_normalizer(w, 20).sum().backward()
    assert counter.kernels.total() < 140
    with KernelCounter() as counter:
        sample_subset(w, 20, None)
    assert counter.kernels.total() < 180
