"""The learned priors against a mixture in NumPy, a Jacobian by autograd, and integrals over a fine grid.

Shapes: B draws, U pseudo-inputs, Z Gaussians.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from npdraw_dist.nn.baselines.vae import Coupling, FlowVAE, LearnedPriorVAE, VampVAE
from tests.helpers.tiny_baselines import tiny_baseline


def tiny(kind: str, **changes: Any) -> LearnedPriorVAE:
    model = tiny_baseline(kind, **changes)
    assert isinstance(model, LearnedPriorVAE)
    return model


def test_vamp_is_a_mixture_of_posteriors() -> None:
    model = tiny("vamp")
    assert isinstance(model, VampVAE)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
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
    assert len(weights) == 5
    assert len({round(float(weight), 6) for weight in weights}) == 5


def grid(limit: float, points: int) -> tuple[Tensor, float]:
    """Points of a square (points^2, 2), and the area of each."""
    line = torch.linspace(-limit, limit, points)
    return torch.cartesian_prod(line, line), (2 * limit / (points - 1)) ** 2


@pytest.mark.parametrize("kind", ["vamp", "flow"])
def test_the_prior_has_mass_one_and_samples_follow_it(kind: str) -> None:
    """Mass, means and mean squares by an integral, against 40,000 samples."""
    model = tiny(kind)
    points, area = grid(9.0, 361)
    with torch.no_grad():
        mass = model.log_prior(points).double().exp() * area
        z = model.draw_prior(40_000, torch.Generator().manual_seed(0), 1.0).double()
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
    for b in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda point: layer(point[None])[0][0], z[b])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_determinant[b])


@pytest.mark.parametrize("latents", [2, 3, 4])
def test_two_layers_move_every_number(latents: int) -> None:
    model = tiny("flow", latents=latents, flow_layers=2)
    assert isinstance(model, FlowVAE)
    z = torch.randn(4, latents, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved = z
        for layer in model.flow:
            moved = layer(moved)[0]
    assert ((moved - z).abs() > 1e-6).all()
