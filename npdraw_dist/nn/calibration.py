"""Temperatures of the posterior, fitted to the ELBO of hard draws after training.

Training uses relaxed draws (mixtures of parts, parts half drawn), whose gradient makes q more certain than is
best for the hard draws that every reported number comes from. So the logits of each choice are divided by one
number, as classifiers are calibrated (Guo et al. 2017, section 4.2).
Shapes: B images, C channels, H x W pixels.
"""

import torch
from torch import Tensor

from npdraw_dist.nn.npdraw import CHOICES, NPDraw

RATIO = 1.5  # between a temperature and the next one tried
TRIES = 6  # the largest temperature is 1.5^6 = 11
BATCH = 64


@torch.no_grad()
def fit_temperature(model: NPDraw, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Sets `model.temperature` by binarised images x (B, C, H, W); returns it by choice.

    Each choice's temperature in turn is multiplied by RATIO (or, if that does not help, divided) while the
    ELBO of `draws` draws an image rises. The noise is always the same, so the ELBO on x never falls.
    """
    best = _elbo(model, x, draws, seed)
    for index, name in enumerate(CHOICES):
        if name == "where":
            continue
        for ratio in (RATIO, 1 / RATIO):
            reached = _climb(model, x, draws, seed, index, ratio, best)
            if reached > best:
                best = reached
                break  # the other direction can only lower it
    return {name: float(value) for name, value in zip(CHOICES, model.temperature, strict=True)}


def _climb(model: NPDraw, x: Tensor, draws: int, seed: int, index: int, ratio: float, best: float) -> float:
    """Multiplies a choice's temperature by `ratio` while the ELBO rises above `best`; returns the best."""
    for _ in range(TRIES):
        before = float(model.temperature[index])
        model.temperature[index] = before * ratio
        if (found := _elbo(model, x, draws, seed)) <= best:
            model.temperature[index] = before
            break
        best = found
    return best


def _elbo(model: NPDraw, x: Tensor, draws: int, seed: int) -> float:
    generator = torch.Generator(x.device).manual_seed(seed)
    bounds = [model.importance(part, draws, generator).analytic for part in torch.split(x, BATCH)]
    return float(torch.cat(bounds, 1).double().mean())
