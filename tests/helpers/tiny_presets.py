"""The presets with tiny networks: their objectives, random batches, and images that look real."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from npdraw_dist.config.load import preset_names, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import BaselineSpec, ModelSpec
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import Batch, PartBank, PartSequence
from npdraw_dist.data.readers import arrays
from npdraw_dist.nn.hub import class_of
from npdraw_dist.nn.npdraw import NPDraw
from tests.helpers.tiny_baselines import make_baseline

NAMES = preset_names()
TINY: dict[str, dict[str, Any]] = {
    "bank": {"size": 8},
    "prior": {"width": 16, "depth": 1, "attention_heads": 2},
    "vae": {"encoder_width": 16, "decoder_width": 16, "decoder_depth": 1},
    "baseline": {"width": 16, "depth": 1, "hidden": 16, "latents": 4},
    "train": {"batch_size": 8, "micro_batch": 4},
}


def tiny_preset(name: str, kind: str | None = None) -> Experiment:
    """kind: replaces the preset's kind of model."""
    model = {} if kind is None else {"model": {"kind": kind}}
    return resolve(name, None, {**TINY, **model, "scale": {"num_workers": 1}})


def bank_of(experiment: Experiment) -> PartBank:
    """A bank of random parts."""
    spec, generator = ModelSpec.of(experiment), torch.Generator().manual_seed(0)
    shape = (spec.parts, spec.image_shape[0], spec.patch, spec.patch)
    return PartBank(torch.rand(shape, generator=generator))


def objective_of(experiment: Experiment, stage: str) -> Objective:
    """The objective that the stage makes, with random weights and parts."""
    torch.manual_seed(0)
    if not experiment.has_parts:
        return make_baseline(BaselineSpec.of(experiment)).objective(experiment.vae)
    spec, bank = ModelSpec.of(experiment), bank_of(experiment)
    if stage == "prior":
        kind = class_of(spec, NPDraw)
        prior = kind.make_prior(spec)
        prior.set_bank(bank.parts)
        return kind.prior_objective(prior, experiment.prior.learning_rate)
    model = class_of(spec, NPDraw)(spec)
    model.set_bank(bank)
    return model.objective(experiment.vae)


def batch_of(experiment: Experiment, images: int = 4) -> Batch:
    """Random images and parses."""
    generator, grid = torch.Generator().manual_seed(1), experiment.canvas_grid
    raw = torch.randint(256, (images, *experiment.data.shape), generator=generator, dtype=torch.uint8)
    if not experiment.has_parts:
        return Batch.of(raw, PartSequence.empty(images))
    chosen = torch.rand(images, grid.places, generator=generator).argsort(1) < experiment.steps // 2
    whether, where = ORDERS[experiment.parse.order].arrange(chosen, chosen.float(), grid, experiment.steps)
    what = torch.randint(experiment.bank.size, whether.shape, generator=generator)
    return Batch.of(raw, PartSequence(whether, where.clone(), what))


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
