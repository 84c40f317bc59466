"""What all baselines have in common: bounds, samples, training, model folders; and the learned priors.

Shapes: k draws, B images, N samples, T steps, H x W image, U pseudo-inputs, Z Gaussians.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npdraw_dist.baselines.base import BaselineObjective
from npdraw_dist.baselines.latents import standard_normal
from npdraw_dist.baselines.vae import Coupling
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.nn.hub import HubModel
from npdraw_dist.nn.likelihoods import DiscretizedLogisticMixture
from tests.helpers.tiny_baselines import (
    KINDS,
    make_baseline,
    strokes,
    strokes_in_01,
    tiny_baseline,
    tiny_spec,
)
from tests.helpers.tiny_models import seeded

COLOUR: dict[str, Any] = {
    **{"image_shape": (3, 6, 6), "binarize": "none"},
    **{"likelihood": "logistic_mixture", "components": 3},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def batch_of(images: Tensor) -> Batch:
    return Batch.of(images, PartSequence.empty(len(images)))


@each_kind
def test_analytic_and_sampled_kl_agree_on_average(kind: str) -> None:
    """The ELBO of sampled log-ratios, of analytic KLs and of training are three estimates of one number."""
    model, x = tiny_baseline(kind), strokes_in_01(3)
    with torch.no_grad():
        drawn = model.importance(x, 4000, seeded())
        reconstruction, parts = model.loss_parts(x.repeat(2000, 1, 1, 1), seeded(1))
    trained = (reconstruction - torch.stack(list(parts.values())).sum(0)).view(2000, 3)
    for estimate in (drawn.analytic, trained):
        error = (estimate.var(0) / len(estimate) + drawn.log_w.var(0) / 4000).sqrt()
        assert ((estimate.mean(0) - drawn.log_w.mean(0)).abs() < 4.5 * error).all()
    assert set(parts) == set(drawn.kl)
    for name, values in parts.items():
        assert float(values.mean()) == pytest.approx(float(drawn.kl[name].mean()), rel=0.15, abs=0.02)


def test_iwae_of_the_vae_is_the_integral() -> None:
    """log p(x) by a sum over a fine grid of the two Gaussians; q is broad and not the prior."""
    model = tiny_baseline("vae")
    last = model.encoder[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.3, -0.2, 0.3, 0.2]))
        x = strokes_in_01(1)
        z, area = plane(6.0, 181)
        fit = model.likelihood.log_prob(model.decode_latents(z), x.expand(len(z), -1, -1, -1))
    exact = (fit + standard_normal(z).log_prob(z)).double().logsumexp(0) + math.log(area)
    log_w = model.log_weights(x, 20_000, generator=seeded())
    found = log_w.logsumexp(0) - math.log(20_000)
    assert float(found) == pytest.approx(float(exact), abs=0.02)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.1, 0.25), (0.9, 1.0)])
def test_beta_and_the_ramp_weigh_training_and_no_metric(progress: float, weight: float) -> None:
    model, batch = tiny_baseline("draw"), batch_of(strokes(6))

    def trained(**settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return BaselineObjective(model, VAEConfig(**settings))(batch, progress, seeded())

    (plain, metrics), (eased, same), (none, too) = trained(), trained(latent_ramp=0.4), trained(beta=0.0)
    kl = metrics["reconstruction"] - metrics["elbo"]
    torch.testing.assert_close(plain - eased, (1 - weight) * kl)
    torch.testing.assert_close(plain - none, kl)
    evaluated = BaselineObjective(model, VAEConfig()).evaluate(batch, seeded())
    for other in (same, too, evaluated):
        torch.testing.assert_close(other, metrics)


@pytest.mark.parametrize(("kind", "changes"), [*((kind, {}) for kind in KINDS), ("vae", COLOUR)])
def test_training_lowers_the_loss_and_every_parameter_feels_it(kind: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = make_baseline(tiny_spec(kind, **changes))
    objective = BaselineObjective(model, VAEConfig(learning_rate=3e-3))
    optimizer = torch.optim.Adam([{**group} for group in objective.parameter_groups()])
    batch = batch_of(strokes(16, model.spec.image_shape[0]))
    losses = []
    for step in range(60):
        loss, _ = objective(batch, 0.0, seeded(step))
        optimizer.zero_grad()
        loss.mean().backward()
        if step == 0:  # DDP waits for the gradient of each
            assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(float(loss.detach().mean()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@each_kind
def test_a_model_folder_there_and_back(kind: str, tmp_path: Path) -> None:
    model = tiny_baseline(kind, **COLOUR)
    model.save_pretrained(tmp_path)
    again = HubModel.from_pretrained(tmp_path)
    assert again.spec == model.spec
    assert isinstance(again.likelihood, DiscretizedLogisticMixture)
    assert again.likelihood.components == 3
    x = strokes_in_01(2, 3)
    assert torch.equal(
        model.log_weights(x, 3, generator=seeded()), again.log_weights(x, 3, generator=seeded())
    )
    with pytest.raises(ValueError, match="images must be"):
        again.importance(x[..., 1:], 1)


@each_kind
def test_samples_and_their_steps(kind: str) -> None:
    """Drawn pixels have the mean of the mean images; a temperature near 0 removes the spread."""
    model = tiny_baseline(kind)
    steps = model.spec.steps
    drawing = model.sample_trace(10, generator=seeded())
    assert ((drawing.images >= 0) & (drawing.images <= 1)).all()
    assert drawing.steps.shape == drawing.decoded.shape == (8, steps, 1, 6, 6)
    assert drawing.drawn.shape == drawing.sides.shape == (8, steps)
    assert drawing.corners.shape == (8, steps, 2)
    torch.testing.assert_close(drawing.steps[:, -1], drawing.images[:8])
    torch.testing.assert_close(model.sample(10, generator=seeded()), drawing.images)
    means, pixels = (
        model.sample(4000, generator=seeded()).mean(0),
        model.sample(4000, generator=seeded(1), pixels=True),
    )
    assert set(pixels.unique().tolist()) <= {0.0, 1.0}
    assert (means - pixels.mean(0)).abs().max() < 0.05
    assert model.sample(50, generator=seeded(), temperature=1e-4).var(0).max() < 1e-4


def test_vamp_is_a_mixture_of_posteriors() -> None:
    model = tiny_baseline("vamp")
    z = torch.randn(4, 2, generator=seeded())
    with torch.no_grad():
        found = model.log_prior(z).numpy()
        raw = model.embed(torch.sigmoid(model.pseudo_inputs)).double().numpy()
    logits = model.weight_logits.detach().double().numpy()
    weights = np.exp(logits) / np.exp(logits).sum()
    for b, point in enumerate(z.double().numpy()):
        total = 0.0
        for u, weight in enumerate(weights):
            mean, std = raw[u, :2], np.exp(raw[u, 2:])
            density = np.exp(-0.5 * ((point - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
            total += weight * density.prod()
        np.testing.assert_allclose(found[b], np.log(total), rtol=1e-5, atol=1e-5)
    assert len({round(float(weight), 6) for weight in weights}) == 5


def plane(limit: float, points: int) -> tuple[Tensor, float]:
    """Points of a square (points^2, 2), and the area of each."""
    line = torch.linspace(-limit, limit, points)
    return torch.cartesian_prod(line, line), (2 * limit / (points - 1)) ** 2


@pytest.mark.parametrize("kind", ["vamp", "flow"])
def test_the_prior_has_mass_one_and_samples_follow_it(kind: str) -> None:
    """Mass, means and mean squares by an integral, against 40,000 samples."""
    model = tiny_baseline(kind)
    points, area = plane(9.0, 361)
    with torch.no_grad():
        mass = model.log_prior(points).double().exp() * area
        z = model.draw_prior(40_000, seeded(), 1.0).double()
    assert float(mass.sum()) == pytest.approx(1.0, abs=2e-3)
    for power in (1, 2):
        expected = (mass[:, None] * points.double() ** power).sum(0)
        error = (z**power).std(0) / 200
        assert ((z**power).mean(0) - expected).abs().lt(5 * error + 2e-3).all()


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("latents", [2, 3])
def test_a_coupling_layer_is_inverted_and_knows_its_determinant(latents: int, swapped: bool) -> None:
    torch.manual_seed(0)
    layer = Coupling(latents, 8, swapped).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    z = torch.randn(4, latents, dtype=torch.float64)
    moved, log_determinant = layer(z)
    torch.testing.assert_close(layer.inverse(moved), z)
    half = latents // 2
    kept = (moved == z).all(0)
    assert int(kept.sum()) in (half, latents - half), "another half stays with `swapped`"
    assert bool(kept[0]) != swapped
    for b in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda point: layer(point[None])[0][0], z[b])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_determinant[b])
