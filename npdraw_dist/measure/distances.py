"""Compares samples with real images by distances between features and by the image nearest to each sample.

Distances need torchmetrics and torch-fidelity, which the extra `metrics` installs.
Shapes: N real images, M generated ones, D features, R random images, C channels, H x W image.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from npdraw_dist.core.images import to_float
from npdraw_dist.core.pages import rows_png
from npdraw_dist.system.errors import UserError

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000
NEIGHBOURS = 3
AT_ONCE = 8 << 20  # largest number of pixels converted to floats at a time


def _identity(features: Tensor) -> nn.Module:
    """An extractor for torchmetrics that returns its input, since workers have computed the features."""
    module = nn.Identity()
    module.__dict__["num_features"] = features.shape[1]
    return module


def require_enough(
    real: int,
    generated: int,
    dimensions: int,
    advice: str = "--samples, --images, or an extractor of fewer features",
) -> None:
    """Raises UserError, with `advice` at its end, if the images are too few for a covariance of full rank."""
    least, needed = min(real, generated), max(dimensions, NEIGHBOURS) + 1
    if least < needed:
        which = "real" if real <= generated else "generated"
        raise UserError(
            f"{least:,} {which} images are too few for the covariance of {dimensions:,} features; "
            f"it needs at least {needed:,} ({advice})"
        )


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Features (N, D), (M, D) -> |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) (Heusel et al. 2017)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    require_enough(len(real), len(generated), real.shape[1])
    metric = FrechetInceptionDistance(feature=_identity(real)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor, seed: int) -> tuple[float, float]:
    """(N, D), (M, D) -> mean and deviation of the squared MMD over random subsets (Binkowski et al. 2018)."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KERNEL_SUBSET_SIZE, len(real), len(generated))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchmetrics warns that it keeps all features in memory
        torch.manual_seed(seed)  # torchmetrics draws the subsets by torch's global generator
        metric = KernelInceptionDistance(_identity(real), subsets=KERNEL_SUBSETS, subset_size=size)
        metric.update(real, real=True)
        metric.update(generated, real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def precision_recall(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """(N, D), (M, D) -> precision and recall (Kynkaanniemi et al. 2019)."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(
        generated, real, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
    )
    return float(found["precision"]), float(found["recall"])


def all_distances(real: Tensor, generated: Tensor, seed: int) -> dict[str, float]:
    """(N, D), (M, D) -> Frechet distance, kernel distance and its deviation, precision and recall."""
    frechet = frechet_distance(real, generated)  # computed first, since it checks the number of images
    names = ("frechet_distance", "kernel_distance", "kernel_distance_std", "precision", "recall")
    kernel, covered = kernel_distance(real, generated, seed), precision_recall(real, generated)
    return dict(zip(names, (frechet, *kernel, *covered), strict=True))


@dataclass(frozen=True)
class Neighbours:
    """The images `nearest` to M samples, (M, C, H, W) uint8, and R random ones, `chosen` (R, C, H, W) uint8.

    distance: (M,), root mean squared pixel difference of sample and nearest image, in [0, 1]. searched: the
    number of all images.
    """

    nearest: Tensor
    distance: Tensor
    chosen: Tensor
    searched: int


def neighbours(samples: Tensor, blocks: Iterable[Tensor], chosen: int, seed: int) -> Neighbours:
    """Finds the image nearest to each sample in Euclidean distance, and at most `chosen` random images.

    samples: (M, C, H, W) in [0, 1]. blocks: the images in pieces, each (N, C, H, W) uint8, with one piece in
    memory at a time. Takes the first of equally near images. Raises ValueError if there is no image.
    """
    queries = samples.detach().float().flatten(1)
    own = queries.square().sum(1)[:, None]
    best = torch.full((len(samples),), torch.inf)
    nearest = torch.zeros(samples.shape, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    keys, kept = torch.zeros(0), nearest[:0]
    searched = 0
    for block in blocks:
        searched += len(block)
        for part in block.split(max(AT_ONCE // queries.shape[1], 1)):
            pixels = to_float(part).flatten(1)
            squared = (own + pixels.square().sum(1) - 2 * queries @ pixels.t()).clamp(min=0)  # (M, N)
            least, index = squared.min(1)
            nearer = least < best
            best = torch.where(nearer, least, best)
            nearest[nearer] = part[index[nearer]]
        # Each image gets a random key, and the smallest keys are kept, so all images have the same chance.
        keys = torch.cat([keys, torch.rand(len(block), generator=generator)])
        order = keys.argsort()[:chosen]
        kept, keys = torch.cat([kept, block])[order], keys[order]
    if searched == 0:
        raise ValueError("there is no real image to compare with the samples")
    return Neighbours(nearest, (best / queries.shape[1]).sqrt(), kept, searched)


def save_neighbours(path: Path, samples: Tensor, found: Neighbours) -> None:
    """Saves a picture with rows of samples (M, C, H, W), their nearest training images and random ones.

    The row of random images is left out if there are fewer of them than samples.
    """
    rows = {"sample": samples, f"nearest of\n{found.searched:,}": to_float(found.nearest)}
    if len(found.chosen) >= len(samples):
        rows["random\ntraining\nimages"] = to_float(found.chosen[: len(samples)])
    captions = [None, [f"{x:.3f}" for x in found.distance.tolist()], None][: len(rows)]
    title = "samples, the nearest training image of each (below: root mean squared difference)"
    path.write_bytes(rows_png(rows, captions, title))
