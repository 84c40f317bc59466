"""Scores a model on held-out images by bounds on the log-likelihood, in nats per image.

Shapes: k importance samples, B or N images, K parts of the bank, C channels, H x W image.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from npdraw_dist.core.images import to_canvas, to_float
from npdraw_dist.core.parts import Batch
from npdraw_dist.measure.bounds import LogMeanExp, bits_per_dim, standard_error
from npdraw_dist.measure.metrics import WITH_ERROR
from npdraw_dist.nn.generative import GenerativeModel
from npdraw_dist.nn.likelihoods import binarized
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.training.feed import noise_seed

BATCH = 32
K_CHUNK = 50  # importance samples in memory at once; each chunk has its own noise seed
SCORING = 2**32 - 2  # keeps the seeds of scoring apart from those of training

Numbers = dict[str, float]


@torch.no_grad()
def score_images(
    model: GenerativeModel,
    images: Tensor,
    k: int,
    seed: int,
    *batch: int,
    condition: Tensor | None = None,
) -> dict[str, Tensor]:
    """uint8 images (B, C, H, W) -> scores by name, each (B,) float64 on the CPU.

    nll_iwae: the negative importance-weighted bound with k samples, in nats. elbo, reconstruction and the KL
    terms (analytic, each conditioned on the steps before) are means over the samples. authors_estimator:
    -log mean exp(reconstruction - analytic KL) as in the authors' code; this is not a bound.
    effective_samples: (sum w)^2 / sum w^2, from 1 to k. (seed, batch) seeds the noise, so equal images with
    equal batch numbers have equal scores on any worker. condition: tokens (B, A), which add nll_iwae_given,
    the bound on -log p(x|condition) with the same noise, and condition_gain, nll_iwae - nll_iwae_given.
    """
    generator = torch.Generator(model.device)
    generator.manual_seed(noise_seed(seed, SCORING, *batch))
    x = binarized(images.to(model.device), model.spec.binarize, generator)
    bound, squares, authors, given = (LogMeanExp() for _ in range(4))
    sums: dict[str, Tensor] = {}
    for number, start in enumerate(range(0, k, K_CHUNK)):
        generator.manual_seed(noise_seed(seed, SCORING, *batch, number))
        if condition is not None:
            conditioned = model.importance(x, min(K_CHUNK, k - start), generator, condition.to(model.device))
            given.add(conditioned.log_w)
            generator.manual_seed(noise_seed(seed, SCORING, *batch, number))
        drawn = model.importance(x, min(K_CHUNK, k - start), generator)
        bound.add(drawn.log_w)
        squares.add(2 * drawn.log_w)
        authors.add(drawn.analytic)
        terms = {"elbo": drawn.log_w, "reconstruction": drawn.reconstruction, **drawn.kl}
        for name, values in terms.items():
            sums[name] = sums.get(name, 0.0) + values.double().sum(0)
    scores = {
        "nll_iwae": -bound.value,
        **{name: total / k for name, total in sums.items()},
        "authors_estimator": -authors.value,
        "effective_samples": torch.exp(2 * bound.value - squares.value) * k,
        **_describe_encoding(model, images, x),
    }
    if condition is not None:
        scores |= {"nll_iwae_given": -given.value, "condition_gain": given.value - bound.value}
    return {name: value.double().cpu() for name, value in scores.items()}


def _describe_encoding(model: GenerativeModel, images: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Number of parts and canvas MSE of each image's most likely z, each (B,); a baseline uses `describe`."""
    if not isinstance(model, NPDraw):
        return model.describe(x)
    z = model.encode(x)
    canvas = to_canvas(to_float(images.to(x.device)), model.spec.downscale)
    error = (model.render(z) - canvas).square().mean((1, 2, 3))
    return {"active_parts": z.whether.sum(1), "canvas_mse": error}


@torch.no_grad()
def part_counts(model: NPDraw, images: Tensor, seed: int, *batch: int) -> Tensor:
    """uint8 images (B, C, H, W) -> (K,), how often the images' most likely z draw each part."""
    generator = torch.Generator(model.device)
    generator.manual_seed(noise_seed(seed, SCORING, *batch))
    z = model.encode(binarized(images.to(model.device), model.spec.binarize, generator))
    return torch.bincount(z.what[z.whether], minlength=model.spec.parts).cpu()


def bank_usage(counts: Tensor) -> Numbers:
    """Counts (K,) -> bank_used, the fraction of parts that are drawn, and bank_perplexity, at most K."""
    frequency = counts.double() / counts.sum().clamp(min=1)
    entropy = -(frequency * frequency.clamp(min=1e-300).log()).sum()
    return {"bank_used": float((counts > 0).double().mean()), "bank_perplexity": float(entropy.exp())}


def summary(values: Mapping[str, Tensor], k: int, dimensions: int) -> Numbers:
    """Scores of N images, each (N,) -> their means, k, n, bits_per_dim, and standard errors if N > 1."""
    n = len(values["nll_iwae"])
    means = {name: float(value.mean()) for name, value in values.items()}
    errors = {f"{name}_se": standard_error(values[name]) for name in WITH_ERROR if name in values and n > 1}
    bits = bits_per_dim(means["nll_iwae"], dimensions)
    return {**means, **errors, "k": k, "n": n, "bits_per_dim": bits}


def score(model: GenerativeModel, data: Batch, k: int, seed: int) -> Numbers:
    """Scores `data` in this process; returns the `summary`."""
    scores = []
    for number, start in enumerate(range(0, len(data), BATCH)):
        some = data[start : start + BATCH]
        condition = some.condition if some.condition.shape[1] else None
        scores.append(score_images(model, some.images, k, seed, 0, number, condition=condition))
    values = {name: torch.cat([part[name] for part in scores]) for name in scores[0]}
    return summary(values, k, data.images[0].numel())
