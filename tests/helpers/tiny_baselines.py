"""Baselines small enough for many draws."""

from typing import Any

import torch

from npdraw_dist.baselines.base import Baseline
from npdraw_dist.config import registry
from npdraw_dist.config.spec import BaselineSpec
from npdraw_dist.nn.hub import make_model

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


def tiny_baseline(kind: str, seed: int = 0, amount: float = 0.2, **changes: Any) -> Baseline:
    """A baseline with shaken weights, so that nothing is zero or uniform."""
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
