"""The two losses: they reach all parameters, their KL is exact, and no training weight enters a metric.

And the temperatures of the posterior, which raise the bound and undo a sharpening.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from npdraw_dist.config.schema import TrainConfig, VAEConfig
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.hard_draws import hard_loss, leave_one_out
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.networks import COLDEST
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import (
    RATIO,
    TEMPERATURE_RATE,
    TRIES,
    PriorObjective,
    VAEObjective,
    fit_temperature,
    most_open,
)
from npdraw_dist.nn.relaxations import kl_categorical
from npdraw_dist.nn.steps import StepLogits, log_prob
from npdraw_dist.training.loop import Run
from tests.helpers.local_context import LocalContext
from tests.helpers.tiny_models import (
    GREY,
    KINDS,
    all_drawings,
    of_all_drawings,
    random_drawings,
    random_sequence,
    seeded,
    tiny_model,
    tiny_prior,
    tiny_spec,
)

RANKED = ("ranked", "chained", "ours")  # the parts decide the order


def kl_of(metrics: dict[str, Tensor]) -> Tensor:
    return metrics["kl_whether"] + metrics["kl_where"] + metrics["kl_what"]


def vae(order: str, background: str = "black", **config: Any) -> tuple[VAEObjective, Batch]:
    spec = tiny_spec(order, background=background, **GREY)
    images = torch.randint(256, (6, *spec.image_shape), generator=seeded()).to(torch.uint8)
    batch = Batch.of(images, random_drawings(spec, 6))
    relaxed = config.pop("relaxed", None)  # share of the budget
    objective = VAEObjective(tiny_model(spec), VAEConfig(**config))
    if relaxed is not None:
        objective.relaxed_share = relaxed
    return objective, batch


@pytest.mark.parametrize(("order", "background"), [("aligned", "black"), ("path", "white")])
@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_every_trained_parameter_has_a_finite_gradient(order: str, background: str, progress: float) -> None:
    objective, batch = vae(order, background, relaxed=0.7)
    loss, metrics = objective(batch, progress, seeded())
    assert loss.shape == (6,)
    assert all(value.shape == (6,) for value in metrics.values())
    loss.mean().backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        moves = float(parameter.grad.abs().max()) > 1e-9
        assert moves == (name != "model.temperature" or objective.is_hard(progress)), name


def test_every_trained_parameter_is_in_one_optimiser_group() -> None:
    objective, _ = vae("raster", learning_rate=0.5, prior_learning_rate=0.25)
    prior = set(map(id, objective.model.prior.parameters()))
    groups = objective.parameter_groups()
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in objective.parameters())
    rates = {id(objective.model.temperature): TEMPERATURE_RATE} | dict.fromkeys(prior, 0.25)
    for group in groups:
        assert all(group["lr"] == rates.get(id(p), 0.5) for p in group["params"])
    groups = PriorObjective(objective.model.prior, 1e-3).parameter_groups()
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    modules = objective.model.prior.modules()
    assert decayed == {id(m.weight) for m in modules if isinstance(m, torch.nn.Linear)}


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5999999])
def test_loss_is_its_three_terms_under_the_schedule(progress: float) -> None:
    weights: dict[str, Any] = {"beta": 0.7, "parse_weight": 20, "parse_weight_end": 2}
    objective, batch = vae("aligned", relaxed=0.6, **weights)
    loss, metrics = objective(batch, progress, seeded())
    kl = kl_of(metrics)
    weight = {0.0: 20, 0.3: 11, 0.5999999: 2.000003}[progress]
    expected = -metrics["reconstruction"] + 0.7 * kl + weight * metrics["parse_cross_entropy"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["surrogate"], metrics["reconstruction"] - kl)
    assert "elbo" not in metrics, "relaxed draws give no bound"
    x = binarized(batch.images, "threshold", None)
    cross_entropy = -log_prob(objective.model.posterior(x), batch.z)
    torch.testing.assert_close(metrics["parse_cross_entropy"], cross_entropy)


def test_hard_draws_give_the_bound_and_nothing_else() -> None:
    objective, batch = vae("path", parse_weight=20, parse_weight_end=2, draws=5, relaxed=0.7)
    loss, metrics = objective(batch, 0.9, seeded())
    assert "surrogate" not in metrics
    torch.testing.assert_close(metrics["elbo"], metrics["reconstruction"] - kl_of(metrics))
    without, _ = VAEObjective(objective.model, VAEConfig(parse_weight=0, draws=5))(batch, 0.9, seeded())
    assert torch.equal(loss, without)


def test_a_single_hard_draw_trains_all_but_the_posterior() -> None:
    objective, batch = vae("path", draws=1)
    loss, metrics = objective(batch, 0.9, seeded())
    torch.testing.assert_close(loss, -metrics["elbo"])
    loss.mean().backward()
    for name, parameter in objective.model.named_parameters():
        assert parameter.grad is not None, name  # DDP waits for it
        posterior = name.startswith("posterior.") or name == "temperature"
        assert not (posterior and parameter.grad.any()), name
    for module in (objective.model.decoder, objective.model.prior):
        assert all(parameter.grad.any() for parameter in list(module.parameters())[-2:])  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_what_a_single_hard_draw_does_not_train_stays_bit_by_bit(optimizer: str) -> None:
    """Momentum must not move it either: Muon's steps have full size, however small the momentum is."""
    objective, batch = vae("path", draws=1, relaxed=0.5)
    config = TrainConfig.model_validate({"batch_size": 6, "micro_batch": 6, "optimizer": optimizer})
    run = Run(objective, config, 0, LocalContext())
    states = []
    for step in range(6):
        run.update(step, (0, batch), 36)
        states.append({name: value.clone() for name, value in objective.model.state_dict().items()})
    q = [name for name in states[0] if name.startswith("posterior.") and "bank" not in name]
    assert any(not torch.equal(states[1][name], states[2][name]) for name in q)
    assert all(torch.equal(states[2][name], states[5][name]) for name in q)
    moved = [name for name in states[0] if not torch.equal(states[2][name], states[5][name])]
    assert {name.split(".")[0] for name in moved} >= {"decoder", "prior"}


def test_a_temperature_stays_where_it_has_a_gradient() -> None:
    objective, batch = vae("path", draws=2, relaxed=0.0)
    config = TrainConfig.model_validate({"batch_size": 6, "micro_batch": 6})
    run = Run(objective, config, 0, LocalContext())
    with torch.no_grad():
        objective.model.temperature.fill_(-1.0)
    run.update(0, (0, batch), 6)
    assert objective.model.temperature.tolist() == pytest.approx([COLDEST] * 3)


def test_a_prior_without_a_rate_stays_as_its_stage_left_it() -> None:
    objective, batch = vae("path", prior_learning_rate=0.0, relaxed=0.0)
    config = TrainConfig.model_validate({"batch_size": 6, "micro_batch": 6, "optimizer": "muon"})
    before = {name: value.clone() for name, value in objective.model.prior.named_parameters()}
    Run(objective, config, 0, LocalContext()).update(0, (0, batch), 6)
    assert all(torch.equal(value, before[name]) for name, value in objective.model.prior.named_parameters())


def test_draws_turn_hard_at_the_end() -> None:
    objective, _ = vae("aligned")
    assert [objective.is_hard(progress) for progress in (0.0, 0.66, 0.67, 1.0)] == [False, False, True, True]
    assert vae("aligned", relaxed_images=0)[0].is_hard(0.0)
    few, _ = vae("aligned", relaxed_images=100, images=1000)
    assert [few.is_hard(progress) for progress in (0.0, 0.099, 0.1)] == [False, False, True]
    many, _ = vae("aligned", relaxed_images=900, images=1000)
    assert [many.is_hard(progress) for progress in (0.66, 0.67)] == [False, True]


def test_schedules_run_over_the_relaxed_draws() -> None:
    """A larger budget with the same `relaxed_images` begins with the same training."""
    losses = []
    for images, tau_end in ((1000, 0.5), (5000, 0.5), (1000, 0.1)):
        objective, batch = vae("aligned", relaxed_images=500, images=images, tau_end=tau_end)
        losses.append(objective(batch, 200 / images, seeded())[0])
    torch.testing.assert_close(*losses[:2])
    assert not torch.allclose(losses[0], losses[2]), "the temperature falls"


def test_a_relaxed_drawing_has_at_most_t_parts() -> None:
    spec = tiny_spec("path", **(GREY | {"steps": 2, "stride": 2, "image_shape": (1, 7, 7)}))
    objective = VAEObjective(tiny_model(spec), VAEConfig())
    with torch.no_grad():
        objective.model.posterior.head.out.bias[0] = 9.0  # type: ignore[union-attr, operator]
    images = torch.randint(256, (6, *spec.image_shape), generator=seeded()).to(torch.uint8)
    q = objective.model.posterior(images.float() / 255)
    canvas, z = objective._draw(q, 0.5, seeded())
    assert z.whether.all()
    seen = torch.zeros(6, 1, spec.grid.padded_height, spec.grid.padded_width)
    for row in range(6):
        for place in z.where[row]:
            r, c = spec.grid.corners[place].tolist()
            seen[row, :, r : r + 3, c : c + 3] = 1
    assert not (canvas * (1 - spec.grid.crop(seen))).any()
    gate = torch.tensor([[0.9, 0.2, 0.7, 0.4], [0.1, 0.2, 0.3, 0.0]])
    assert most_open(gate, 3).tolist() == [[1, 0, 1, 1], [1, 1, 1, 0]]


def test_the_surrogate_charges_each_place_for_its_chance_of_being_drawn() -> None:
    """With a prior that is the same at each step, the cost of a drawing is a sum over its places."""
    spec = tiny_spec("raster", image_shape=(1, 2, 6), steps=3)
    model, z = tiny_model(spec).double(), all_drawings(spec)
    p = StepLogits(torch.zeros(3), torch.randn(3).expand(3, 3), torch.randn(2).expand(3, 2)).map(
        lambda logits: logits.double()[None].expand(len(z), *logits.shape)
    )
    q = model.infer(torch.rand(1, 1, 2, 6).double()).map(Tensor.detach)
    whether = q.whether.clone().requires_grad_()
    tiled = StepLogits(whether, None, q.what).tile(len(z))
    parts = model.layout.surrogate_kl(tiled, p, z)
    chance = model.layout.log_prob(tiled, z).exp().detach()
    (found,) = torch.autograd.grad(
        chance @ (parts["kl_what"] + parts["kl_where"]), whether, retain_graph=True
    )
    assert p.where is not None
    cost = kl_categorical(q.what[0], p.what[0]) - p.where[0, 0].log_softmax(-1)
    (expected,) = torch.autograd.grad(torch.sigmoid(whether) @ cost, whether)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("kind", "size", "beta"),
    [
        (KINDS[0], {}, 1.0),
        (KINDS[1], {}, 0.7),
        (KINDS[1], {"steps": 1}, 1.0),
        (KINDS[1], {"image_shape": (1, 2, 3), "stride": 1}, 1.0),
        (KINDS[2], {}, 0.7),
        (RANKED, {}, 1.0),
    ],
)
def test_the_gradient_of_hard_draws_is_that_of_the_bound(
    kind: tuple[str, ...], size: dict[str, Any], beta: float
) -> None:
    """Averaged over all pairs of draws, with their probability, by enumeration."""
    model = tiny_model(tiny_spec(*kind, **size)).double()
    with torch.no_grad():
        model.temperature.copy_(torch.tensor([1.3, 1.0, 0.8]))
    x = torch.rand(1, *model.spec.image_shape, dtype=torch.float64).round()
    z, _, log_q, log_joint = of_all_drawings(model, x)
    n, log_z = len(z), model.prior.log_prob(z)
    bound = log_q.exp() @ (log_joint - log_z + beta * (log_z - log_q))
    exact = torch.autograd.grad(bound, list(model.parameters()), retain_graph=True)

    first, second = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    pairs = PartSequence.cat([z[first], z[second]])
    model.sample_posterior = lambda q, generator: pairs  # type: ignore[method-assign]
    every, q = x.expand(n * n, -1, -1, -1), model.infer(x).tile(n * n)
    loss, metrics = hard_loss(model, every, q, 2, seeded(), beta=beta)
    weight = (log_q[first] + log_q[second]).exp().detach()
    assert float(weight.sum()) == pytest.approx(1)
    estimated = torch.autograd.grad(-(weight @ loss), list(model.parameters()))
    for (name, _), found, expected in zip(model.named_parameters(), estimated, exact, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name
    torch.testing.assert_close(weight @ metrics["elbo"], log_q.exp() @ (log_joint - log_q), rtol=0, atol=1e-6)


def test_each_draw_is_measured_against_the_others() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(leave_one_out(rewards, 3), torch.tensor([1 - 4, 2 - 3.5, 6 - 1.5]))


@pytest.mark.parametrize("kind", [*KINDS, RANKED], ids="-".join)
@torch.no_grad()
def test_the_mean_of_the_kl_terms_is_the_kl_by_enumeration(kind: tuple[str, ...]) -> None:
    model = tiny_model(tiny_spec(*kind))
    for image in torch.rand(3, 1, *model.spec.image_shape):
        z, q, log_q, _ = of_all_drawings(model, image)
        exact = float(log_q.exp().double() @ (log_q - model.prior_log_prob(z)).double())
        terms = model.layout.terms(q, model.prior(z), z)
        assert set(terms.kl) == {"kl_whether", "kl_where", "kl_what"}
        torch.testing.assert_close(terms.log_q.sum(1), log_q)
        expected = float(log_q.exp().double() @ torch.stack(list(terms.kl.values())).sum(0).double())
        assert expected == pytest.approx(exact, abs=1e-4)
        if model.spec.order == "raster":
            surrogate = torch.stack(list(model.layout.surrogate_kl(q, model.prior(z), z).values())).sum(0)
            assert float(log_q.exp().double() @ surrogate.double()) == pytest.approx(exact, abs=1e-4)


def test_evaluation_holds_no_training_weight() -> None:
    plain, batch = vae("raster", beta=1.0, parse_weight=0.0)
    weighted, _ = vae("raster", beta=0.0, parse_weight=500.0, tau_end=2.0)
    with torch.no_grad():
        a, b = plain.evaluate(batch, seeded()), weighted.evaluate(batch, seeded())
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    torch.testing.assert_close(a["elbo"], a["reconstruction"] - kl_of(a))


@torch.no_grad()
def test_evaluated_elbo_is_the_enumerated_one() -> None:
    spec, n = tiny_spec("raster"), 4000
    model = tiny_model(spec)
    image = torch.tensor([0, 255, 255, 0, 255, 0, 0, 255], dtype=torch.uint8).view(1, 1, 2, 4)
    _, _, log_q, log_joint = of_all_drawings(model, image.float() / 255)
    exact = float(log_q.exp().double() @ (log_joint - log_q).double())
    batch = Batch.of(image.expand(n, -1, -1, -1), random_sequence(spec, n))
    drawn = VAEObjective(model, VAEConfig()).evaluate(batch, seeded())["elbo"].double()
    assert float(drawn.mean()) == pytest.approx(exact, abs=4.5 * float(drawn.std()) / n**0.5 + 1e-4)


def test_the_loss_of_the_prior_is_the_nll_of_each_drawing() -> None:
    spec = tiny_spec("raster", **GREY)
    objective = PriorObjective(tiny_prior(spec), 1e-3)
    batch = Batch.of(torch.zeros(6, 1, 7, 8, dtype=torch.uint8), random_sequence(spec, 6))
    nll = -objective.prior.log_prob(batch.z)
    torch.testing.assert_close(objective(batch, 0.0, seeded())[0], nll)
    torch.testing.assert_close(objective(batch[2:], 0.0, seeded())[0], nll[2:])
    torch.testing.assert_close(objective.evaluate(batch, seeded())["nll"], nll)


def test_binarize_draws_thresholds_or_keeps() -> None:
    grey = torch.tensor([0, 64, 127, 128, 255], dtype=torch.uint8)
    images = grey.view(1, 1, 1, 5).expand(20_000, -1, -1, -1)
    drawn = binarized(images, "dynamic", seeded())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0).flatten(), grey / 255, rtol=0, atol=0.02)
    assert torch.equal(drawn, binarized(images, "dynamic", seeded()))
    assert binarized(images[:1], "threshold", None).flatten().tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(binarized(images[:1], "none", None).flatten(), grey / 255)


def grey_model(order: str) -> NPDraw:
    """Its best temperatures lie within the limits of the search."""
    spec = tiny_spec(order, **(GREY if order == "aligned" else GREY | {"steps": 3}))
    return tiny_model(spec, seed=4)


def images(n: int) -> Tensor:
    return (torch.rand(n, 1, 7, 8, generator=seeded()) > 0.5).float()


def elbo(model: NPDraw, x: Tensor) -> float:
    return float(model.importance(x, 8, seeded(3)).analytic.mean())


@pytest.mark.parametrize("order", ["aligned", "raster"])
def test_the_bound_rises_and_where_has_no_temperature(order: str) -> None:
    model, x = grey_model(order), images(32)
    before = elbo(model, x)
    fitted = fit_temperature(model, x, 8, 3)
    assert list(fitted.values()) == model.temperature.tolist()
    assert elbo(model, x) > before
    assert fitted["where"] == 1
    assert max(fitted.values()) <= RATIO**TRIES * 1.0001
    assert min(fitted.values()) * 1.0001 >= RATIO**-TRIES
    if order == "aligned":
        assert fit_temperature(model, x, 8, 3) == fitted, "a second fit finds nothing better"
