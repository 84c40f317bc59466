"""The authors' surrogate: its canvases, its terms by hand, its gradients, its teacher."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from npdraw_dist.baselines.authors.model import (
    AuthorsObjective,
    gumbel_temperature,
    soft_canvases,
    teacher_chance,
)
from npdraw_dist.baselines.authors.network import CanvasPrior
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.paste import gather_parts, paste_steps
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.steps import kl_steps, log_prob
from tests.helpers.tiny_models import GREY, random_drawings, seeded, tiny_model, tiny_spec

THEIRS: dict[str, Any] = {"parse_weight": 50, "parse_weight_end": 50}
LATE = 0.2  # no teacher forcing after this share of the budget


def vae(**config: Any) -> tuple[AuthorsObjective, Batch]:
    spec = tiny_spec("aligned", "independent", "authors", **GREY)
    images = torch.randint(256, (6, *spec.image_shape), generator=seeded()).to(torch.uint8)
    objective = AuthorsObjective(tiny_model(spec), VAEConfig(**THEIRS | config))
    return objective, Batch.of(images, random_drawings(spec, 6))


GRIDS = [Grid(7, 8, 3, 3), Grid(9, 10, 4, 4, True), Grid(7, 8, 3, 2, background=1.0)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_canvases_of_certain_weights_are_the_rendered_ones(grid: Grid) -> None:
    torch.manual_seed(0)
    bank, shape = torch.rand(5, 3, grid.patch, grid.patch), (2, 6)
    z = PartSequence(torch.rand(shape) < 0.7, torch.randint(grid.places, shape), torch.randint(5, shape))
    weights = F.one_hot(z.what, 5).float() * z.whether[..., None]
    expected = paste_steps(gather_parts(bank, z, grid), z.where, grid)
    torch.testing.assert_close(soft_canvases(bank, weights, z.where, grid), expected)


def test_gradients_of_what_is_trained() -> None:
    objective, batch = vae()
    loss, _ = objective(batch, 0.3, seeded())
    loss.mean().backward()
    for name, parameter in objective.named_parameters():
        trained = not name.startswith("model.prior.")
        assert (parameter.grad is not None) == trained, name
        if parameter.grad is not None and name != "model.temperature":
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_loss_is_its_terms() -> None:
    objective, batch = vae(beta=0.7)
    loss, metrics = objective(batch, LATE, seeded())
    kl = metrics["kl_whether"] + metrics["kl_where"] + metrics["kl_what"]
    x = binarized(batch.images, "threshold", None)
    cross_entropy = -log_prob(objective.model.posterior(x), batch.z)
    torch.testing.assert_close(metrics["parse_cross_entropy"], cross_entropy)
    torch.testing.assert_close(loss, 0.7 * kl - metrics["reconstruction"] + 50 * cross_entropy)
    assert "elbo" not in metrics, "relaxed draws give no bound"
    assert (metrics["kl_where"] > 0).all()


def test_sharp_draws_give_the_terms_of_a_hard_drawing() -> None:
    """At a temperature near 0 the mixtures are parts: the canvas, the prior and the KL are those of z."""
    objective, batch = vae(tau_end=1e-4)
    model, x = objective.model, binarized(batch.images, "threshold", None)
    q = model.posterior(x)
    what, gate, where = objective._choices(q, batch.z, 0.5, seeded())
    z = PartSequence(gate > 0.5, where, what.argmax(-1))
    assert not torch.equal(z.where, batch.z.where), "places are drawn"
    _, metrics = objective._relaxed(x, q, batch.z, 0.5, seeded())
    decoded = model.likelihood.log_prob(model.decoder(model.render(z)), x)
    torch.testing.assert_close(metrics["reconstruction"], decoded, rtol=1e-4, atol=1e-4)
    for name, value in kl_steps(q, model.prior(z), z.whether.float()).items():
        torch.testing.assert_close(metrics[name], value.sum(1), rtol=1e-4, atol=1e-4)
    silent = type(q)(torch.full_like(q.whether, -40.0), q.where, q.what)
    _, metrics = objective._relaxed(x, silent, batch.z, 0.5, seeded())
    assert not (metrics["kl_what"] + metrics["kl_where"]).any(), "what is not drawn does not count"
    assert metrics["kl_whether"].all()


def test_the_prior_sees_mixtures_with_gradients() -> None:
    """A draw has a gradient through what the prior expects of later steps, and none through earlier steps.

    So the KL of *whether* depends on q's *what*, which it has no other way to.
    """
    objective, batch = vae()
    model = objective.model
    prior, z = model.prior, batch.z
    assert isinstance(prior, CanvasPrior)
    weights = torch.rand(6, 9, 4).requires_grad_()
    logits = prior.given(soft_canvases(model.bank_parts, weights, z.where, model.grid), z)
    (gradient,) = torch.autograd.grad(logits.what[:, 5].sin().sum(), weights)
    assert gradient[:, :5].abs().amax((0, 2)).all()
    assert not gradient[:, 5:].any()
    x = binarized(batch.images, "threshold", None)
    q = model.posterior(x)
    _, metrics = objective._relaxed(x, q, z, 0.5, seeded())
    (gradient,) = torch.autograd.grad(metrics["kl_whether"].sum(), q.what)
    assert gradient[:, 0].any()
    assert not gradient[:, -1].any()


def test_covered_places_are_those_that_draw() -> None:
    objective, batch = vae()
    prior, z = objective.model.prior, batch.z
    assert isinstance(prior, CanvasPrior)
    canvases = torch.rand(6, 9, 1, 7, 8)
    base = prior.given(canvases, z)
    elsewhere = PartSequence(z.whether, torch.where(z.whether, z.where, (z.where + 1) % 9), z.what)
    assert torch.equal(prior.given(canvases, elsewhere).what, base.what)
    nothing = PartSequence(torch.zeros_like(z.whether), z.where, z.what)
    assert not torch.allclose(prior.given(canvases, nothing).what, base.what)


def test_teacher_forcing_gives_what_and_where_of_the_parse_and_leaves_whether() -> None:
    objective, batch = vae()
    model, z = objective.model, batch.z
    q = model.posterior(binarized(batch.images, "threshold", None))
    what, gate, where = objective._choices(q, z, 0.0, seeded())
    assert torch.equal(where, z.where)
    assert torch.equal(what.sum(-1) > 0, z.whether), "a step that the parse leaves out shows nothing"
    assert torch.equal(what.argmax(-1)[z.whether], z.what[z.whether])
    assert not torch.equal(gate > 0.5, z.whether)
    own = objective._choices(q, z, 0.9, seeded())
    assert torch.equal(own[1], gate)
    assert own[0].sum(-1).allclose(torch.ones(6, 9))


def test_schedules_of_the_authors() -> None:
    """Their epoch n of 661: tau = max(exp(-0.013862944 n), 1/2); chance exp(-0.005 (1 + 2 + ... + n))."""
    config = VAEConfig(tau_end=0.5)
    for epoch in (0, 1, 10, 25, 49, 50, 51, 300, 660):
        tau = max(2.718281828 ** (-0.013862944 * epoch), 0.5)
        assert gumbel_temperature(config, epoch / 661) == pytest.approx(tau, rel=1e-5)
        forced = 2.718281828 ** (-0.005 * epoch * (epoch + 1) / 2)
        assert teacher_chance(epoch / 661) == pytest.approx(forced, abs=0.025)


def test_the_decoder_has_a_rate_of_its_own() -> None:
    objective, _ = vae(learning_rate=1e-3)
    rates = {id(p): group["lr"] for group in objective.parameter_groups() for p in group["params"]}
    for module, rate in {"posterior": 1e-3, "decoder": 1e-4, "prior": None}.items():
        assert {rates.get(id(p)) for p in objective.model.get_submodule(module).parameters()} == {rate}
