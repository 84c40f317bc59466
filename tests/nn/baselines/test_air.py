"""AIR's presence as a stopping time, by enumeration. n objects of at most T."""

import itertools

import numpy as np
import torch

from npdraw_dist.nn.baselines.air import AIR, stopping_log_prob
from tests.helpers.tiny_baselines import strokes, tiny_baseline


def test_presence_is_a_stopping_distribution() -> None:
    """Against all 2^T strings of presence: after a 0 only zeros; the chances are those of n."""
    logits = torch.tensor([[1.3, -0.4, 0.2], [-30.0, 50.0, 3.0]], dtype=torch.float64)
    found = stopping_log_prob(logits).exp().numpy()
    on = 1 / (1 + np.exp(-logits.numpy()))
    for b in range(2):
        chances = np.zeros(4)
        for bits in itertools.product((0, 1), repeat=3):
            chance, alive = 1.0, True
            for t, bit in enumerate(bits):
                chance *= (on[b, t] if bit else 1 - on[b, t]) if alive else float(not bit)
                alive = alive and bool(bit)
            chances[sum(bits)] += chance
        np.testing.assert_allclose(found[b], chances, atol=1e-12)
        assert abs(found[b].sum() - 1) < 1e-12


def test_drawn_counts_follow_the_stopping_distribution() -> None:
    model = tiny_baseline("air", amount=0.5)
    assert isinstance(model, AIR)
    count = model.generate(20_000, torch.Generator().manual_seed(0), 1.0).codes["count"]
    shares = torch.bincount(count, minlength=4) / 20_000
    torch.testing.assert_close(shares, stopping_log_prob(model.prior_presence).exp(), atol=0.015, rtol=0)


def test_the_sum_over_n_has_the_gradient_of_the_expectation() -> None:
    """d/d logits of the exact sum = the score function's estimate over many drawn n, on one fixed path."""
    torch.manual_seed(0)
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(4, dtype=torch.float64)
    (stopping_log_prob(logits).exp() * reward).sum().backward()
    assert logits.grad is not None
    log_q = stopping_log_prob(logits)
    n = torch.multinomial(log_q.exp().detach(), 200_000, replacement=True)
    (score,) = torch.autograd.grad((log_q[n] * reward[n]).mean(), logits)
    torch.testing.assert_close(logits.grad, score, atol=0.01, rtol=0)


def test_nothing_is_drawn_beyond_n() -> None:
    model = tiny_baseline("air")
    assert isinstance(model, AIR)
    with torch.no_grad():
        model.prior_presence.fill_(-50.0)
    drawing = model.sample_trace(4, torch.Generator().manual_seed(0))
    assert not drawing.drawn.any()
    empty = model.likelihood.mean(model.background.detach().expand(4, -1, 6, 6))
    torch.testing.assert_close(drawing.images, empty)


def test_describe_counts_objects() -> None:
    model = tiny_baseline("air")
    assert isinstance(model, AIR)
    x = strokes(3).float() / 255
    with torch.no_grad():
        for bias, expected in ((60.0, 3.0), (-60.0, 0.0)):
            model.presence.bias.fill_(bias)
            count = model.describe(x)["active_objects"]
            torch.testing.assert_close(count, torch.full((3,), expected), atol=1e-4, rtol=0)
