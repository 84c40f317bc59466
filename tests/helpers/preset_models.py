"""The models of the presets, with banks that k-means makes of real digits or of colour images.

Shapes: N images, C channels, H x W pixels, h x w canvas, B batch.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import extract
from npdraw_dist.config.load import resolve
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import Batch
from npdraw_dist.data.readers import arrays
from npdraw_dist.nn.authors.training import AuthorsObjective
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import VAEObjective
from npdraw_dist.parse.parser import Parser

# Sizes for a CPU: bfloat16 is slow there. What the network is made of stays.
SMALL: dict[str, Any] = {
    "prior": {"depth": 2, "width": 32, "attention_heads": 2, "dropout": 0.0},
    "vae": {"encoder_width": 32, "decoder_width": 32, "decoder_depth": 1},
}


def preset_model(name: str, images: int) -> tuple[VAEObjective, Batch]:
    """The objective of a small model of a preset, untrained, with a real bank; images and their parses."""
    experiment = resolve(name, None, SMALL)
    torch.manual_seed(0)
    spec = ModelSpec.of(experiment)  # the authors' sizes are constants
    sizes = {"head_width": spec.prior.width // spec.prior.attention_heads, "mlp": 4 * spec.prior.width}
    model = NPDraw(spec.model_copy(update={"prior": spec.prior.model_copy(update=sizes)}))
    real = torch.from_numpy(real_images(experiment.data.shape, 160))
    seen = canvas_bytes(real, experiment.grid.downscale)
    patches = extract(seen.numpy(), experiment.canvas_grid, experiment.bank.min_energy)
    bank = build_bank(patches, seen.shape[1], experiment.bank, experiment.seed)[0]
    model.set_bank(bank)
    kind = AuthorsObjective if experiment.authors.model else VAEObjective
    batch = Batch.of(real[:images], Parser.of(experiment, bank)(seen[:images]).z)
    return kind(model, experiment.vae), batch


@cache
def real_images(shape: tuple[int, int, int], n: int) -> NDArray[np.uint8]:
    """(N, C, H, W): scikit-learn's digits; in colour on a soft ground, since no photographs are at hand."""
    channels, height, width = shape
    digits = arrays.digits()[0][:n]
    if channels == 1:
        assert (height, width) == digits.shape[2:]
        return digits
    generator = torch.Generator().manual_seed(0)

    def soft(side: int) -> Tensor:
        rough = torch.rand(n, channels, side, side, generator=generator)
        return F.interpolate(rough, size=(height, width), mode="bicubic").clamp(0, 1)

    shown = F.interpolate(torch.from_numpy(digits).float() / 255, size=(height, width), mode="bilinear")
    grain = 0.02 * torch.randn(n, channels, height, width, generator=generator)
    images = shown * soft(2) + (1 - shown) * soft(4) + grain
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Gives the layers that start at zero, or small, usual weights, so that they count as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not weight.any():
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
        elif name.endswith("posterior.head.weight"):
            weight.mul_(10)
