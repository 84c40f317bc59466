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

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import to_float
from npdraw_dist.core.pages import rows_png

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000
NEIGHBOURS = 3
AT_ONCE = 8 << 20  # largest number of pixels converted to floats at a time


def _identity(features: Tensor) -> nn.Module:
    """An extractor for torchmetrics that returns its input, which is features that workers have extracted."""
    module = nn.Identity()
    module.__dict__["num_features"] = features.shape[1]
    return module


def require_enough(
    real: int,
    generated: int,
    dimensions: int,
    advice: str = "--samples, --images, or an extractor of fewer features",
) -> None:
    """Raises UserError, which ends with `advice`, on too few images for a covariance of full rank."""
    least, needed = min(real, generated), max(dimensions, NEIGHBOURS) + 1
    if least < needed:
        which = "real" if real <= generated else "generated"
        raise UserError(
            f"{least:,} {which} images are too few for the covariance of {dimensions:,} features: "
            f"at least {needed:,} ({advice})"
        )


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """(N, D), (M, D) -> |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) (Heusel et al. 2017)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    require_enough(len(real), len(generated), real.shape[1])
    metric = FrechetInceptionDistance(feature=_identity(real)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor, seed: int) -> tuple[float, float]:
    """(N, D), (M, D) -> mean and deviation of the squared MMD over seeded subsets (Binkowski et al. 2018)."""
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
    frechet = frechet_distance(real, generated)  # first, since it checks the number of images
    names = ("frechet_distance", "kernel_distance", "kernel_distance_std", "precision", "recall")
    kernel, covered = kernel_distance(real, generated, seed), precision_recall(real, generated)
    return dict(zip(names, (frechet, *kernel, *covered), strict=True))


@dataclass(frozen=True)
class Neighbours:
    """nearest: (M, C, H, W) uint8, the image nearest to each sample. distance: (M,), the root mean squared
    difference of their pixels in [0, 1]. chosen: (R, C, H, W) uint8, random images. searched: the number of
    all images.
    """

    nearest: Tensor
    distance: Tensor
    chosen: Tensor
    searched: int


def neighbours(samples: Tensor, blocks: Iterable[Tensor], chosen: int, seed: int) -> Neighbours:
    """The image nearest to each sample by Euclidean distance of pixels, and at most `chosen` random images.

    samples: (M, C, H, W) in [0, 1]. blocks: (N, C, H, W) uint8 each, one in memory at a time. Of equally near
    images the first is taken. Raises ValueError if there is no image.
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
        # Images get random keys, and those with the least keys are kept, so all have the same chance.
        keys = torch.cat([keys, torch.rand(len(block), generator=generator)])
        order = keys.argsort()[:chosen]
        kept, keys = torch.cat([kept, block])[order], keys[order]
    if searched == 0:
        raise ValueError("there is no image to compare the samples with")
    return Neighbours(nearest, (best / queries.shape[1]).sqrt(), kept, searched)


def save_neighbours(path: Path, samples: Tensor, found: Neighbours) -> None:
    """Saves a row of samples (M, C, H, W), a row of their nearest training images and a row of random ones.

    The random row is left out if it has fewer images than samples.
    """
    rows = {"sample": samples, f"nearest of\n{found.searched:,}": to_float(found.nearest)}
    if len(found.chosen) >= len(samples):
        rows["random\ntraining\nimages"] = to_float(found.chosen[: len(samples)])
    captions = [None, [f"{x:.3f}" for x in found.distance.tolist()], None][: len(rows)]
    title = "samples, the nearest training image of each (below: root mean squared difference)"
    path.write_bytes(rows_png(rows, captions, title))
