"""What all baselines have in common: bounds, samples, training, model folders.

Shapes: k draws, B images, N samples, T steps, H x W image.
"""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, spec_of
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.baselines.base import Baseline, BaselineObjective, gaussian, standard_normal
from npdraw_dist.nn.baselines.vae import ConvVAE
from npdraw_dist.nn.hub import load, make_model
from npdraw_dist.nn.likelihoods import DiscretizedLogisticMixture
from tests.helpers.tiny_baselines import KINDS, strokes, tiny_baseline, tiny_spec


def batch_of(images: Tensor) -> Batch:
    return Batch.of(images, PartSequence.empty(len(images)))


def test_gaussians_are_torchs() -> None:
    raw, other = torch.randn(4, 6), torch.randn(4, 6)
    q, p = gaussian(raw), gaussian(other)
    torch_q, torch_p = (Normal(r[:, :3], r[:, 3:].exp()) for r in (raw, other))
    z = q.sample(None)
    torch.testing.assert_close(q.log_prob(z), torch_q.log_prob(z).sum(1))
    torch.testing.assert_close(q.kl(p), kl_divergence(torch_q, torch_p).sum(1))
    torch.testing.assert_close(standard_normal(z).log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_analytic_and_sampled_kl_agree_on_average(kind: str) -> None:
    """The ELBO of sampled log-ratios, of analytic KLs and of training are three estimates of one number."""
    model = tiny_baseline(kind)
    x = strokes(3).float() / 255
    with torch.no_grad():
        drawn = model.importance(x, 6000, torch.Generator().manual_seed(0))
        copies = x.repeat(2000, 1, 1, 1)
        reconstruction, parts = model.loss_parts(copies, torch.Generator().manual_seed(1))
    trained = (reconstruction - torch.stack(list(parts.values())).sum(0)).view(2000, 3)
    for estimate in (drawn.analytic, trained):
        error = (estimate.var(0) / len(estimate) + drawn.log_w.var(0) / 6000).sqrt()
        assert ((estimate.mean(0) - drawn.log_w.mean(0)).abs() < 4.5 * error).all()
    assert set(parts) == set(drawn.kl)
    for name, values in parts.items():
        assert float(values.mean()) == pytest.approx(float(drawn.kl[name].mean()), rel=0.15, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_below_iwae_rising_with_k(kind: str) -> None:
    """Averages over groups of the same draws: E[ELBO] < E[IWAE 5] < E[IWAE 50]; each group by Jensen."""
    model = tiny_baseline(kind)
    x = strokes(2).float() / 255
    log_w = model.log_weights(x, 5000, torch.Generator().manual_seed(0))
    ladder = [log_w.mean(0)]
    for k in (5, 50, 5000):
        groups = log_w.view(5000 // k, k, 2)
        ladder.append((groups.logsumexp(1) - math.log(k)).mean(0))
    for lower, upper in itertools.pairwise(ladder):
        assert (lower < upper).all()


def test_iwae_of_the_vae_is_the_integral() -> None:
    """log p(x) by a sum over a fine grid of the two Gaussians; q is broad and not the prior."""
    model = tiny_baseline("vae")
    assert isinstance(model, ConvVAE)
    last = model.encoder[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.3, -0.2, 0.3, 0.2]))
    x = strokes(1).float() / 255
    line = torch.linspace(-6, 6, 241)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        fit = model.likelihood.log_prob(model.decode_latents(z), x.expand(len(z), -1, -1, -1))
    exact = (fit + standard_normal(z).log_prob(z)).double().logsumexp(0) + 2 * math.log(12 / 240)
    log_w = model.log_weights(x, 20_000, torch.Generator().manual_seed(0))
    found = log_w.logsumexp(0) - math.log(20_000)
    assert float(found) == pytest.approx(float(exact), abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)])
def test_the_kl_rises_to_its_full_weight(kind: str, progress: float, weight: float) -> None:
    """As that of NP-DRAW's Gaussians does. Bounds count all of it."""
    model, batch = tiny_baseline(kind), batch_of(strokes(6))
    found = []
    for latent_ramp in (0.0, 0.4):
        settings = Experiment.model_validate({"vae": {"latent_ramp": latent_ramp}}).vae
        found.append(BaselineObjective(model, settings)(batch, progress, torch.Generator().manual_seed(0)))
    (plain, metrics), (eased, same) = found
    kl = metrics["reconstruction"] - metrics["elbo"]
    torch.testing.assert_close(plain - eased, (1 - weight) * kl)
    assert torch.equal(metrics["elbo"], same["elbo"])


@pytest.mark.few(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("likelihood", "channels"), [("bernoulli", 1), ("logistic_mixture", 3)])
def test_training_lowers_the_loss_and_every_parameter_feels_it(
    kind: str, likelihood: str, channels: int
) -> None:
    binarize = "threshold" if likelihood == "bernoulli" else "none"
    torch.manual_seed(0)
    spec = tiny_spec(kind, image_shape=(channels, 6, 6), likelihood=likelihood, binarize=binarize)
    model = make_model(spec)
    assert isinstance(model, Baseline)
    settings = Experiment.model_validate({"vae": {"learning_rate": 3e-3}}).vae
    objective = BaselineObjective(model, settings)
    optimizer = torch.optim.Adam([{**group} for group in objective.parameter_groups()])
    batch = batch_of(strokes(64, channels))
    losses = []
    for step in range(60):
        loss, _ = objective(batch, 0.0, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.mean().backward()
        if step == 0:  # DDP waits for the gradient of each
            assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(float(loss.detach().mean()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_beta_weighs_training_and_no_metric(kind: str) -> None:
    model = tiny_baseline(kind)
    batch = batch_of(strokes(4))
    found = {}
    for beta in (0.0, 1.0):
        objective = BaselineObjective(model, Experiment.model_validate({"vae": {"beta": beta}}).vae)
        found[beta] = objective(batch, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[0.0][1], found[1.0][1])
    kl = found[1.0][1]["reconstruction"] - found[1.0][1]["elbo"]
    torch.testing.assert_close(found[1.0][0] - found[0.0][0], kl)
    again = BaselineObjective(model, Experiment().vae).evaluate(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, found[1.0][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_there_and_back(kind: str, tmp_path: Path) -> None:
    model = tiny_baseline(kind)
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    again = type(model).from_pretrained(tmp_path)
    assert again.spec == model.spec
    x = strokes(2).float() / 255
    assert torch.equal(
        model.log_weights(x, 3, torch.Generator().manual_seed(0)),
        again.log_weights(x, 3, torch.Generator().manual_seed(0)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_their_steps(kind: str) -> None:
    model = tiny_baseline(kind)
    steps = model.spec.steps
    drawing = model.sample_trace(10, torch.Generator().manual_seed(0))
    assert drawing.images.shape == (10, 1, 6, 6)
    assert 0 <= drawing.images.min() <= drawing.images.max() <= 1
    assert drawing.steps.shape == drawing.decoded.shape == (8, steps, 1, 6, 6)
    assert drawing.drawn.shape == drawing.sides.shape == (8, steps)
    assert drawing.corners.shape == (8, steps, 2)
    torch.testing.assert_close(drawing.steps[:, -1], drawing.images[:8])
    torch.testing.assert_close(model.sample(10, torch.Generator().manual_seed(0)), drawing.images)
    pixels = model.sample_pixels(7, torch.Generator().manual_seed(0))
    assert pixels.shape == (7, 1, 6, 6)
    assert set(pixels.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_models(kind: str) -> None:
    """E[x] of drawn pixels is that of mean images, and a temperature near 0 takes the spread away."""
    model = tiny_baseline(kind)
    means = model.sample(4000, torch.Generator().manual_seed(0)).mean(0)
    pixels = model.sample_pixels(4000, torch.Generator().manual_seed(1)).mean(0)
    assert (means - pixels).abs().max() < 0.05
    cold = model.sample(50, torch.Generator().manual_seed(0), temperature=1e-4)
    assert cold.var(0).max() < 1e-4


def test_a_spec_of_each_kind() -> None:
    sizes = {
        "vae": (40, 1),
        "vamp": (40, 1),
        "flow": (40, 1),
        "vqvae": (16, 1),
        "draw": (10, 10),
        "air": (20, 3),
    }
    assert set(sizes) == set(KINDS)
    for kind, (latents, steps) in sizes.items():
        spec = spec_of(Experiment.model_validate({"model": {"kind": kind}}))
        assert isinstance(spec, BaselineSpec)
        assert (spec.kind, spec.latents, spec.steps) == (kind, latents, steps)
        assert make_model(spec).spec == spec


@pytest.mark.parametrize("kind", [*KINDS, "npdraw"])
def test_the_components_of_the_mixture_reach_the_model(kind: str, tmp_path: Path) -> None:
    settings = {"likelihood": "logistic_mixture", "components": 3}
    data, name = {"binarize": "none"}, {"kind": kind}
    experiment = Experiment.model_validate({"vae": settings, "data": data, "model": name})
    make_model(spec_of(experiment)).save_pretrained(tmp_path)
    likelihood = load(tmp_path).likelihood
    assert isinstance(likelihood, DiscretizedLogisticMixture)
    assert likelihood.components == 3
    assert likelihood.parameters_per_pixel == 3 * (1 + 2)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are \(B, 1, 6, 6\)"):
        tiny_baseline("vae").importance(torch.rand(2, 1, 5, 5), 1)
