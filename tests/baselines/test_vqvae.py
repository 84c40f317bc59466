"""VQ-VAE: bounds by enumeration of a tiny grid, gradients by hand, dead codes, resuming.

Shapes: B images, L cells, K codes, D numbers of a code, S = K^L grids of codes.
"""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.baselines.base import BaselineObjective
from npdraw_dist.baselines.vqvae import DEAD, VQVAE
from npdraw_dist.config.schema import Experiment, VAEConfig
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.steps import chosen
from npdraw_dist.training import checkpoint
from npdraw_dist.training.loop import Run
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_baselines import (
    TINY_PRIOR,
    assert_gradient_of_bound,
    strokes,
    strokes_in_01,
    tiny_baseline,
)
from tests.helpers.tiny_models import seeded


def tiny(**changes: Any) -> VQVAE:
    """K 3 and L 4: 81 grids."""
    return tiny_baseline("vqvae", **changes)


def every_grid(model: VQVAE) -> Tensor:
    """(S, L)."""
    places = model.rows * model.columns
    return torch.tensor(list(itertools.product(range(model.spec.codes), repeat=places)))


def log_prior(model: VQVAE, z: Tensor) -> Tensor:
    """log p(z), (B,) nats."""
    return chosen(model.prior(z), z).sum(1)


@pytest.mark.parametrize("changes", [{}, {"table": "factorised"}, {"network": "lstm"}])
def test_samples_follow_the_prior(changes: dict[str, str]) -> None:
    """The shares of all grids in 20,000 cached draws are right within 5 standard errors."""
    model = tiny(amount=0.5, prior={**TINY_PRIOR, **changes})
    z, n = every_grid(model), 20_000
    weights = model.spec.codes ** torch.arange(z.shape[1] - 1, -1, -1)
    found = model.prior.sample(n, seeded()) @ weights
    shares = torch.bincount(found, minlength=len(z)) / n
    with torch.no_grad():
        chance = log_prior(model, z).exp()
    assert float(chance.sum()) == pytest.approx(1, abs=1e-5)
    assert ((shares - chance).abs() < 5 * (chance / n).sqrt() + 1e-6).all()
    assert chance.max() > 2 / len(z)  # the prior is not uniform


@pytest.mark.parametrize("log_scale", [-3.0, 0.5])
def test_bounds_are_those_of_all_grids(log_scale: float) -> None:
    """sum_z q(z|x) (log p(x|z) + log p(z) - log q(z|x)), and q sums to 1."""
    model, x = tiny(), strokes_in_01(1)
    with torch.no_grad():
        model.log_scale.fill_(log_scale)
        z = every_grid(model)
        log_q = model.embed(x).log_softmax(-1)[0]  # (L, K)
        log_q = log_q[torch.arange(z.shape[1]), z].sum(1).double()
        output = model.decode_codes(F.embedding(z, model.codebook))
        weight = model.likelihood.log_prob(output, x.expand(len(z), -1, -1, -1)) + log_prior(model, z)
    assert float(log_q.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    expected = float((log_q.exp() * (weight - log_q)).sum())
    drawn, n = model.importance(x, 5_000, seeded()), 5_000
    log_w = drawn.log_w[:, 0].double()
    for estimate in (log_w, drawn.analytic[:, 0].double()):
        error = float(estimate.std()) / math.sqrt(n)
        assert float(estimate.mean()) == pytest.approx(expected, abs=5 * error + 1e-4)
    if log_scale < 0:  # q is broad enough that no grid of weight is missed
        bound, exact = log_w.logsumexp(0) - math.log(n), weight.double().logsumexp(0)
        error = float((log_w - bound).exp().std()) / math.sqrt(n)  # of the mean weight, as a part of it
        assert error < 0.03
        assert float(bound) == pytest.approx(float(exact), abs=4 * error)


def test_drawn_codes_are_decoded_hard_with_gradients_for_all() -> None:
    model, x = tiny(), strokes_in_01(4)
    found, _ = model.relaxed_parts(x, 1.0, seeded())
    with torch.no_grad():
        terms = []
        for codes in every_grid(model):
            output = model.decode_codes(F.embedding(codes.expand(4, -1), model.codebook))
            terms.append(model.likelihood.log_prob(output, x))
    closest = (torch.stack(terms) - found).abs().min(0).values
    assert closest.max() < 1e-4  # the fit of some grid of codes, not of a mixture
    found.sum().backward()
    for parameter in (next(model.encoder.parameters()), model.codebook, model.log_scale):
        assert parameter.grad is not None
        assert parameter.grad.any()
    assert model.seen.sum() == 0, "outside of training no code is counted"


def test_the_gradient_of_hard_draws_is_that_of_the_bound() -> None:
    """Against the sum over all grids, for encoder, codebook, scale, decoder and prior."""
    model, x = tiny(), strokes_in_01(1)
    named = {name: p for name, p in model.named_parameters() if name.endswith("bias") or p.ndim < 3}
    z = every_grid(model)
    log_q = model.embed(x).log_softmax(-1)[0][torch.arange(z.shape[1]), z].sum(1)
    output = model.decode_codes(F.embedding(z, model.codebook))
    weight = model.likelihood.log_prob(output, x.expand(len(z), -1, -1, -1)) + log_prior(model, z)
    elbo = (log_q.exp() * (weight - log_q)).sum()
    exact = assert_gradient_of_bound(model, x, named, elbo, each=0.5)
    assert all(exact[name].abs().max() > 1e-3 for name in ("codebook", "log_scale"))


def test_relaxed_draws_come_first_and_cool() -> None:
    model, x, taus = tiny(), strokes_in_01(2), []
    relaxed = model.relaxed_parts

    def noted(x: Tensor, tau: float, generator: Any) -> Any:
        taus.append(tau)
        return relaxed(x, tau, generator)

    model.relaxed_parts = noted  # type: ignore[method-assign]
    config = VAEConfig(images=100, relaxed_images=50, tau_end=0.4)
    names = [set(model.training_loss(x, config, share, seeded())[1]) for share in (0.0, 0.25, 0.5, 0.9)]
    assert taus == [1.0, pytest.approx(0.7)]
    assert [("surrogate" in n, "elbo" in n) for n in names] == [(True, False)] * 2 + [(False, True)] * 2
    single = config.model_copy(update={"draws": 1})
    assert "surrogate" in model.training_loss(x, single, 1.0, seeded())[1]
    assert taus[-1] == pytest.approx(0.4)


def one_rank(values: Tensor) -> Tensor:
    return values[None]


def in_training(model: VQVAE, used: int = 0) -> VQVAE:
    """Code `used` lies where the encoder's vectors are, the others far away."""
    with torch.no_grad():
        model.codebook.fill_(1e3)
        model.codebook[used] = model.encode(strokes_in_01(8)).mean((0, 1))
    return model.train()


def test_a_dead_code_becomes_a_vector_of_the_encoder() -> None:
    model = in_training(tiny(), used=1)
    alive = model.codebook[1].clone()
    with torch.no_grad():
        model.usage.fill_(1.0)
        vectors = model.encode(strokes_in_01(8)).flatten(0, 1)
        model.relaxed_parts(strokes_in_01(8), 1.0, seeded())
        model.after_step(one_rank)
        assert (model.codebook[[0, 2]] == 1e3).all()  # one step does not tell that a code is dead
        model.usage[[0, 2]] = DEAD
        model.hard_draws(strokes_in_01(8), 2, seeded(1))
        model.after_step(one_rank)
    assert torch.equal(model.codebook[1], alive)
    for code in (0, 2):
        distance = (model.codebook[code] - vectors).abs().max(1).values
        assert distance.min() < 1e-6
    assert model.usage[[0, 2]].tolist() == [1.0, 1.0]
    assert float(model.usage[1]) > 1  # it had all uses
    assert model.seen.sum() == 0


def test_two_ranks_revive_codes_as_one_does() -> None:
    """Micro-batches on two ranks, or all on one: the same use of codes, and the same vectors."""
    start = in_training(tiny())
    batches = [(strokes_in_01(16)[half], seed) for seed, half in enumerate((slice(0, 8), slice(8, 16)))]

    def after(images: list[tuple[Tensor, int]]) -> VQVAE:
        model = copy.deepcopy(start)
        with torch.no_grad():
            for x, seed in images:
                model.relaxed_parts(x, 1.0, seeded(seed))
        return model

    one, ranks = after(batches), [after([batch]) for batch in batches]
    one.after_step(one_rank)
    sent: list[Tensor] = []

    def noted(values: Tensor) -> Tensor:
        sent.append(values)
        return values[None]

    for model in ranks:
        copy.deepcopy(model).after_step(noted)
    for model in ranks:
        model.after_step(lambda _: torch.stack(sent))
        assert torch.equal(model.codebook, one.codebook)
        assert torch.equal(model.usage, one.usage)
    assert not torch.equal(one.codebook, start.codebook)


def test_a_resumed_training_is_the_same(tmp_path: Path) -> None:
    """3 steps, a checkpoint, 3 steps = 6 steps, bit by bit, the use of codes too."""
    settings = Experiment.model_validate({"train": {"batch_size": 8, "micro_batch": 4}})
    batch = Batch.of(strokes(8, seed=0), PartSequence.empty(8))

    def run() -> Run:
        objective = BaselineObjective(tiny().train(), settings.vae)
        return Run(objective, settings.train, 0, LocalContext())

    whole, first, second = run(), run(), run()
    for step in range(3):
        whole.update(step, (0, batch), 48)
        first.update(step, (0, batch), 48)
    checkpoint.save(tmp_path, first.objective, first.optimizer, {})
    checkpoint.restore(tmp_path, second.objective, second.optimizer)
    for step in range(3, 6):
        whole.update(step, (0, batch), 48)
        second.update(step, (0, batch), 48)
    expected, found = whole.objective.state_dict(), second.objective.state_dict()
    assert "model.usage" in expected
    assert not any("candidates" in name for name in expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert not torch.equal(expected["model.usage"], tiny().usage)
