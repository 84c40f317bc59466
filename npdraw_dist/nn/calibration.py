"""Temperatures of the posterior, fitted to the exact bound once training is done.

Training sees relaxed draws (mixtures of parts, parts half drawn), whose gradient makes q surer of itself than
is best for the hard draws that every number is taken of. So the logits of each choice are divided by one
number, as classifiers are calibrated (Guo et al. 2017, section 4.2), here by the ELBO of hard draws.
Shapes: B images, C channels, H x W pixels.
"""

import torch
from torch import Tensor

from npdraw_dist.nn.npdraw import CHOICES, NPDraw

RATIO = 1.5  # of a temperature to the next one tried
TRIES = 6  # so no temperature beyond 1.5^6 = 11
BATCH = 64


@torch.no_grad()
def fit_temperature(model: NPDraw, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """Sets `model.temperature` by x (B, C, H, W), as the likelihood takes it; returns it by choice.

    One choice after the other climbs by RATIO, up or else down, while the ELBO of `draws` draws an image
    rises; all are compared under the same noise. So on x the ELBO is never below that of temperature 1.
    """
    model.temperature.fill_(1.0)
    best = _elbo(model, x, draws, seed)
    for index, name in enumerate(CHOICES):
        if name == "where" and model.spec.aligned:
            continue
        for ratio in (RATIO, 1 / RATIO):
            reached = _climb(model, x, draws, seed, index, ratio, best)
            if reached > best:
                best = reached
                break  # what rises one way falls the other
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
    bounds = [model.importance(part, draws, generator).analytic for part in x.split(BATCH)]
    return float(torch.cat(bounds, 1).double().mean())
