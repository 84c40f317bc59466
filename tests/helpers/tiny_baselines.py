"""Baselines small enough for many draws, and the check that a loss has the gradient of their bound."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.config import registry
from npdraw_dist.config.schema import VAEConfig
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.hub import make_model
from tests.helpers.tiny_models import seeded

TINY_PRIOR = {"depth": 1, "width": 16, "attention_heads": 2, "head_width": 8, "mlp": 64}
KINDS = ("vae", "vamp", "flow", "map", "vqvae", "gaussian", "draw", "air")


def tiny_spec(kind: str, **changes: Any) -> BaselineSpec:
    of = registry.KINDS[kind]
    values: dict[str, Any] = {
        **{"kind": kind, "image_shape": (1, 6, 6), "likelihood": "bernoulli", "binarize": "threshold"},
        **{"latents": 2, "steps": 1 if of.default_steps == 1 else 3, "hidden": 16, "width": 8, "depth": 1},
        **{"read": 3, "write": 3, "glimpse": 4, "pseudo_inputs": 5, "flow_layers": 3, "codes": 3},
        "local": 1,
        "prior": TINY_PRIOR if of.has_sequence else None,
        "grid": {"patch": 3, "stride": 3} if of.has_places else None,
    }
    return BaselineSpec.model_validate(values | changes)


def make_baseline(spec: BaselineSpec) -> Baseline:
    model = make_model(spec)
    assert isinstance(model, Baseline)
    return model


def tiny_baseline(kind: str, seed: int = 0, amount: float = 0.2, **changes: Any) -> Any:
    """A model of this kind, shaken so that nothing is zero or uniform."""
    torch.manual_seed(seed)
    model = make_baseline(tiny_spec(kind, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape))
    return model.eval()


def strokes(n: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """(n, C, 6, 6) uint8: bright squares of 2 x 2 somewhere on black."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, channels, 6, 6, dtype=torch.uint8)
    for index in range(n):
        row, column = torch.randint(5, (2,), generator=generator).tolist()
        images[index, :, row : row + 2, column : column + 2] = 255
    return images


def strokes_in_01(n: int, channels: int = 1) -> Tensor:
    """`strokes` as a model takes them: floats in [0, 1]."""
    return strokes(n, channels).float() / 255


def assert_gradient_of_bound(
    model: Baseline,
    x: Tensor,
    named: dict[str, nn.Parameter],
    elbo: Tensor,
    share: float = 0.0,
    each: float = math.inf,
) -> dict[str, Tensor]:
    """Hard draws have, on average, the value `elbo` and the gradient of -elbo, which is returned by name.

    x: one image. share: tolerance as a share of the largest value, beside 5 standard errors. each: how far
    the value of one seed may be from `elbo`.
    """
    exact = torch.autograd.grad(-elbo, list(named.values()))
    config, found = VAEConfig(draws=2, relaxed_images=0), []
    for seed in range(30):
        loss, metrics = model.training_loss(x.repeat(400, 1, 1, 1), config, 0.5, seeded(seed))
        found.append(
            (metrics["elbo"].detach().mean(), *torch.autograd.grad(loss.mean(), list(named.values())))
        )
    assert all(abs(float(drawn[0] - elbo)) <= each for drawn in found)
    expected = (elbo.detach(), *exact)
    for name, true, drawn in zip(("elbo", *named), expected, zip(*found, strict=True), strict=True):
        values = torch.stack(drawn)
        error = 5 * values.std(0) / math.sqrt(len(values)) + share * true.abs().max() + 1e-4
        assert ((values.mean(0) - true).abs() < error).all(), name
    return dict(zip(named, exact, strict=True))
