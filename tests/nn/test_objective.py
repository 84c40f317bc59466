"""The two losses: gradients everywhere they belong, exact KL, no training weight in what is reported."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.nn.steps import StepLogits, kl_parts, log_prob
from tests.helpers.tiny_models import all_sequences, random_sequence, tiny_model, tiny_prior, tiny_spec

KINDS = list(itertools.product(["aligned", "raster"], ["chained", "independent"]))
GREY: dict[str, Any] = {"image_shape": (1, 7, 8), "patch": 3, "stride": 3, "parts": 4, "steps": 9}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vae(order: str, heads: str = "chained", **config: Any) -> tuple[VAEObjective, Batch]:
    spec = tiny_spec(order, heads, **GREY)
    g = seeded()
    images = torch.randint(256, (6, *spec.image_shape), generator=g).to(torch.uint8)
    batch = Batch.of(images, random_sequence(spec, 6))
    return VAEObjective(tiny_model(spec), VAEConfig(**config)), batch


@pytest.mark.parametrize(("order", "heads"), KINDS)
def test_every_trained_parameter_has_a_finite_gradient(order: str, heads: str) -> None:
    objective, batch = vae(order, heads)
    loss, metrics = objective(batch, 0.1, seeded())
    assert loss.shape == (6,)
    assert all(value.shape == (6,) for value in metrics.values())
    loss.mean().backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("posterior.key.bias"):  # a softmax does not see it
            assert float(parameter.grad.abs().max()) > 1e-9, name


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_a_frozen_prior_has_no_gradient_and_no_optimiser_group(order: str) -> None:
    objective, batch = vae(order, train_prior=False)
    objective(batch, 0.1, seeded())[0].mean().backward()
    frozen = set(map(id, objective.model.prior.parameters()))
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name
    groups = objective.parameter_groups()
    assert not frozen & {id(p) for group in groups for p in group["params"]}


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_every_trained_parameter_is_in_one_optimiser_group(order: str) -> None:
    objective, _ = vae(order, learning_rate=0.5, prior_learning_rate=0.25)
    prior = set(map(id, objective.model.prior.parameters()))
    groups = objective.parameter_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in objective.parameters())
    for group in groups:
        assert all(group["lr"] == (0.25 if id(p) in prior else 0.5) for p in group["params"])


def test_only_matrices_of_the_prior_decay() -> None:
    prior = tiny_prior(tiny_spec("raster"))
    groups = PriorObjective(prior, 1e-3, 0.1).parameter_groups()
    assert sum(len(group["params"]) for group in groups) == len(list(prior.parameters()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    linear = {id(m.weight) for m in prior.modules() if isinstance(m, torch.nn.Linear)}
    assert decayed == linear


@pytest.mark.parametrize("progress", [0.0, 0.15, 0.6])
@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_loss_is_its_three_terms_under_the_schedule(order: str, progress: float) -> None:
    objective, batch = vae(order, beta=0.7, parse_weight=20, parse_weight_end=2, parse_ramp=0.3)
    loss, metrics = objective(batch, progress, seeded())
    kl = metrics["kl_whether"] + metrics["kl_where"] + metrics["kl_what"]
    weight = {0.0: 20, 0.15: 11, 0.6: 2}[progress]
    expected = -metrics["reconstruction"] + 0.7 * kl + weight * metrics["parse_cross_entropy"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["surrogate"], metrics["reconstruction"] - kl)
    assert "elbo" not in metrics, "relaxed draws give no bound"
    x = binarized(batch.images, "threshold", None)
    cross_entropy = -log_prob(objective.model.posterior(x), batch.z)
    torch.testing.assert_close(metrics["parse_cross_entropy"], cross_entropy)


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_full_teacher_forcing_decodes_and_scores_the_parse(order: str) -> None:
    objective, batch = vae(order, teacher_start=1.0)
    _, metrics = objective(batch, 0.0, seeded())
    model, x = objective.model, binarized(batch.images, "threshold", None)
    torch.testing.assert_close(metrics["reconstruction"], model.log_likelihood(batch.z, x))
    for name, value in kl_parts(model.posterior(x), model.prior(batch.z)).items():
        torch.testing.assert_close(metrics[name], value)


@pytest.mark.parametrize("gradient", ["none", "straight_through", "relaxed"])
def test_whether_gradient_is_an_option(gradient: str) -> None:
    objective, batch = vae("aligned", whether_gradient=gradient, beta=0, parse_weight=0)
    objective(batch, 0.5, seeded())[0].mean().backward()
    whether = objective.model.posterior.head.weight.grad[0]  # type: ignore[union-attr, index]
    assert bool(whether.any()) == (gradient != "none")


@pytest.mark.parametrize(("order", "heads"), KINDS)
@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_kl_parts_by_enumeration(order: str, heads: str, steps: int) -> None:
    """E over q of the KL given the steps before is sum q (log q - log p) over all sequences."""
    shape = (1, 2, 4) if steps == 2 or order == "raster" else (1, 2, 2)
    spec = tiny_spec(order, heads, image_shape=shape, steps=steps)
    model = tiny_model(spec)
    for image in torch.rand(3, 1, *shape):
        q = model.posterior(image)
        canonical = all_sequences(spec)
        log_q = log_prob(q.tile(len(canonical)), canonical).double()
        exact = float(log_q.exp() @ (log_q - model.prior_log_prob(canonical).double()))
        every = all_sequences(spec, canonical=False)
        copies = q.tile(len(every))
        parts = kl_parts(copies, model.prior(every))
        assert set(parts) == {"kl_whether", "kl_where", "kl_what"}
        assert all(value.shape == (len(every),) and (value >= -1e-6).all() for value in parts.values())
        mass = full_probability(copies, every)
        assert float(mass.sum()) == pytest.approx(1, abs=1e-5)
        expected = float(mass @ sum(parts.values(), torch.zeros(len(every))).double())
        assert expected == pytest.approx(exact, abs=1e-4)


def full_probability(q: StepLogits, z: PartSequence) -> Tensor:
    """(N,): q of sequences whose ignored where and what count as draws too."""
    chance = torch.sigmoid(q.whether)
    p = torch.where(z.whether, chance, 1 - chance)
    p = p * q.what.softmax(-1).gather(-1, z.what[..., None])[..., 0]
    if q.where is not None:
        p = p * q.where.softmax(-1).gather(-1, z.where[..., None])[..., 0]
    return p.prod(1).double()


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_evaluation_holds_no_training_weight(order: str) -> None:
    plain, batch = vae(order, beta=1.0, parse_weight=0.0)
    weighted, _ = vae(order, beta=0.0, parse_weight=500.0, tau_start=3.0, tau_end=2.0, teacher_start=1.0)
    with torch.no_grad():
        a, b = plain.evaluate(batch, seeded()), weighted.evaluate(batch, seeded())
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    kl = a["kl_whether"] + a["kl_where"] + a["kl_what"]
    torch.testing.assert_close(a["elbo"], a["reconstruction"] - kl)


@pytest.mark.parametrize("order", ["aligned", "raster"])
@torch.no_grad()
def test_evaluated_elbo_is_the_enumerated_one(order: str) -> None:
    spec, n = tiny_spec(order), 4000
    model = tiny_model(spec)
    image = torch.tensor([0, 255, 255, 0, 255, 0, 0, 255], dtype=torch.uint8).view(1, 1, 2, 4)
    z = all_sequences(spec)
    x = image.float() / 255
    log_q = log_prob(model.posterior(x).tile(len(z)), z).double()
    log_joint = model.log_likelihood(z, x.expand(len(z), -1, -1, -1)) + model.prior_log_prob(z)
    exact = float(log_q.exp() @ (log_joint.double() - log_q))
    batch = Batch.of(image.expand(n, -1, -1, -1), random_sequence(spec, n))
    drawn = VAEObjective(model, VAEConfig()).evaluate(batch, seeded())["elbo"].double()
    assert float(drawn.mean()) == pytest.approx(exact, abs=4.5 * float(drawn.std()) / n**0.5 + 1e-4)


@pytest.mark.parametrize(("order", "heads"), KINDS)
def test_two_half_batches_sum_to_the_whole(order: str, heads: str) -> None:
    spec = tiny_spec(order, heads, **GREY)
    prior = tiny_prior(spec)
    objective = PriorObjective(prior, 1e-3, 0.0)
    batch = Batch.of(torch.zeros(6, 1, 7, 8, dtype=torch.uint8), random_sequence(spec, 6))

    def gradients(pieces: list[Batch]) -> tuple[Tensor, list[Tensor]]:
        prior.zero_grad()
        losses = [objective(piece, 0.0, seeded())[0] for piece in pieces]
        for loss in losses:
            loss.sum().backward()
        return torch.cat(losses), [p.grad.clone() for p in prior.parameters() if p.grad is not None]

    whole, halves = gradients([batch]), gradients([batch[:2], batch[2:]])
    assert len(whole[1]) == len(list(prior.parameters()))
    torch.testing.assert_close(whole[0], halves[0])
    torch.testing.assert_close(whole[1], halves[1])
    torch.testing.assert_close(whole[0], -prior.log_prob(batch.z))
    torch.testing.assert_close(objective.evaluate(batch, seeded())["nll"], whole[0])


def test_binarize_draws_thresholds_or_keeps() -> None:
    grey = torch.tensor([0, 64, 127, 128, 255], dtype=torch.uint8)
    images = grey.view(1, 1, 1, 5).expand(20_000, -1, -1, -1)
    drawn = binarized(images, "dynamic", seeded())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0).flatten(), grey / 255, rtol=0, atol=0.02)
    assert torch.equal(drawn, binarized(images, "dynamic", seeded()))
    assert binarized(images[:1], "threshold", None).flatten().tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(binarized(images[:1], "none", None).flatten(), grey / 255)


def test_an_incomplete_objective_fails_at_construction() -> None:
    class Incomplete(PriorObjective):
        networks = Objective.networks

    with pytest.raises(TypeError, match="networks"):
        Incomplete(tiny_prior(tiny_spec()), 1e-3, 0.0)
