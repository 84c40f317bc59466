"""Subsets of at most T elements against their enumeration."""

import itertools

import pytest
import torch

from npdraw_dist.nn.subsets import likeliest_subset, log_normalizer, sample_subset


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
