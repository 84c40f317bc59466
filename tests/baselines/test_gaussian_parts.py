"""Gaussian parts: the bound's gradient in *whether*, the prior's samples, what an empty place shows.

Shapes: B images, L places, D Gaussians of a part, S = 2^L sets of places.
"""

import itertools
import math

import pytest
import torch

from npdraw_dist.baselines.gaussian_parts import GaussianParts, bernoulli_log_prob, split
from npdraw_dist.baselines.latents import MAX_LOG_STD
from npdraw_dist.nn.relaxations import kl_bernoulli
from tests.helpers.tiny_baselines import assert_gradient_of_bound, strokes_in_01, tiny_baseline
from tests.helpers.tiny_models import seeded

SETS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))  # (S, L)


def tiny() -> GaussianParts:
    """Four places of 3 x 3 pixels."""
    return tiny_baseline("gaussian")


def test_the_gradient_of_hard_draws_is_that_of_the_bound() -> None:
    """Against the sum over all sets of places, where *what* is all but certain."""
    model, x = tiny(), strokes_in_01(1)
    with torch.no_grad():
        model.head.weight[3:] = 0
        assert model.head.bias is not None
        model.head.bias[3:] = -MAX_LOG_STD
    named = {name: p for name, p in model.named_parameters() if not name.startswith(("decoder", "pixels"))}
    logits, q = split(model.embed(x))
    what = q.mean.expand(len(SETS), -1, -1)
    log_q = bernoulli_log_prob(logits.expand(len(SETS), -1), SETS).sum(1)
    fit = model.likelihood.log_prob(model.decode_parts(SETS, what), x.expand(len(SETS), -1, -1, -1))
    prior, p = model.prior(SETS, what)
    kl = kl_bernoulli(logits, prior) + torch.sigmoid(logits) * q.kl(p)
    elbo = (log_q.exp() * (fit - kl.sum(1))).sum()
    assert_gradient_of_bound(model, x, named, elbo, share=0.01)


def test_samples_follow_the_prior() -> None:
    """The share of each place in 20,000 draws, given what was drawn before."""
    model, n = tiny(), 20_000
    whether, what = model.prior.sample(n, seeded())
    with torch.no_grad():
        logits, p = model.prior(whether, what)
    chance = torch.sigmoid(logits)
    for place in range(4):
        error = (chance[:, place] * (1 - chance[:, place])).sum().sqrt()
        assert abs(float((whether - chance)[:, place].sum())) < 5 * float(error)
    standardised = p.standardised(what)
    assert standardised.mean((0, 1)).abs().max() < 5 / math.sqrt(n)
    assert standardised.std((0, 1)).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert chance.std(0)[1:].min() > 1e-3  # what was drawn changes what comes


def test_an_empty_place_shows_the_background_whatever_its_part_is() -> None:
    model = tiny()
    what = torch.randn(2, 4, 2, generator=seeded())
    with torch.no_grad():
        empty = model.decode_parts(torch.zeros(2, 4), what)
        drawn = model.decode_parts(torch.ones(2, 4), what)
        states = model.prior(torch.zeros(2, 4), what)[0]
    torch.testing.assert_close(empty[0], empty[1])
    torch.testing.assert_close(states[0], states[1])
    assert not torch.allclose(drawn[0], drawn[1])
