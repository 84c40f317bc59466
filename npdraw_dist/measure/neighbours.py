"""The training images that are nearest to samples: whether a model repeats what it has seen.

Shapes: N samples, M images of a block, R random images, C channels, H x W image.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from npdraw_dist.core.images import to_float

AT_ONCE = 8 << 20  # pixels of images that are floats at one time


@dataclass(frozen=True)
class Neighbours:
    """nearest: (N, C, H, W) uint8, of each sample. distance: (N,), the root mean squared difference of pixels
    in [0, 1]. chosen: (R, C, H, W) uint8, random images. searched: how many images there were.
    """

    nearest: Tensor
    distance: Tensor
    chosen: Tensor
    searched: int


def neighbours(samples: Tensor, blocks: Iterable[Tensor], chosen: int, seed: int) -> Neighbours:
    """The nearest of all images by the Euclidean distance of pixels, and at most `chosen` random ones.

    samples: (N, C, H, W) in [0, 1]. blocks: (M, C, H, W) uint8 each; one is in memory at a time, so any
    number of images may be searched. Of equally near images the first one is taken. Raises ValueError
    without images.
    """
    queries = samples.detach().float().flatten(1)
    best = torch.full((len(samples),), torch.inf)
    nearest = torch.zeros(samples.shape, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    keys, kept = torch.zeros(0), nearest[:0]
    searched = 0
    for block in blocks:
        searched += len(block)
        for part in block.split(max(AT_ONCE // queries.shape[1], 1)):
            squared, index = _squared_distances(queries, to_float(part).flatten(1)).min(1)
            nearer = squared < best
            best = torch.where(nearer, squared, best)
            nearest[nearer] = part[index[nearer]]
        # Each image has a random key, and the least keys are kept: all images have the same chance.
        keys = torch.cat([keys, torch.rand(len(block), generator=generator)])
        order = keys.argsort()[:chosen]
        kept, keys = torch.cat([kept, block])[order], keys[order]
    if searched == 0:
        raise ValueError("there is no image to compare the samples with")
    return Neighbours(nearest, (best / queries.shape[1]).sqrt(), kept, searched)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M)."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.t()).clamp(min=0)
