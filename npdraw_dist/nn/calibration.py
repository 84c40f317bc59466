"""Temperatures of the posterior, fitted to the ELBO of hard draws after training.

Relaxed draws make q more certain than is best for hard draws. So the logits of each choice are divided by one
number, as classifiers are calibrated (Guo et al. 2017, section 4.2).
Shapes: B images, C channels, H x W pixels.
"""

import torch
from torch import Tensor

from npdraw_dist.nn.networks import CHOICES, Networks

RATIO = 1.5  # between a temperature and the next one tried
TRIES = 6  # the largest temperature is 1.5^6 = 11
BATCH = 64


@torch.no_grad()
def fit_temperature(model: Networks, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Sets `model.temperature` by binarised images x (B, C, H, W); returns it by choice.

    Each choice's in turn is multiplied by RATIO (or, if that does not help, divided) while the ELBO of
    `draws` draws an image rises. The noise is always the same, so the ELBO on x never falls.
    """
    best = _elbo(model, x, draws, seed)
    for index, name in enumerate(CHOICES):
        if name == "where":
            continue
        for ratio in (RATIO, 1 / RATIO):
            before = best
            for _ in range(TRIES):
                old = float(model.temperature[index])
                model.temperature[index] = old * ratio
                if (found := _elbo(model, x, draws, seed)) <= best:
                    model.temperature[index] = old
                    break
                best = found
            if best > before:
                break  # the other direction can only lower it
    return {name: float(value) for name, value in zip(CHOICES, model.temperature, strict=True)}


def _elbo(model: Networks, x: Tensor, draws: int, seed: int) -> float:
    generator = torch.Generator(x.device).manual_seed(seed)
    bounds = [model.importance(part, draws, generator).analytic for part in torch.split(x, BATCH)]
    return float(torch.cat(bounds, 1).double().mean())
