"""Differences between two kinds of models on the same images and seeds, with their standard errors.

Shapes: S seeds, N images. A number is per image, or one for each seed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SURE = 2.0  # standard errors beyond which two kinds are told apart


@dataclass(frozen=True)
class Difference:
    """The mean of a - b. se_images: its standard error over images, 0 of numbers that no image has.

    se_seeds: over seeds, each a training of both; NaN with one seed.
    """

    mean: float
    se_images: float
    se_seeds: float
    images: int
    seeds: int

    @property
    def error(self) -> float:
        """Of both together: sqrt(se_images^2 + se_seeds^2); with one seed that of images alone."""
        return math.hypot(self.se_images, 0.0 if math.isnan(self.se_seeds) else self.se_seeds)

    @property
    def is_sure(self) -> bool:
        """Whether the mean is further from 0 than SURE standard errors. Never with one seed."""
        return self.seeds > 1 and abs(self.mean) > SURE * self.error


def paired(a: NDArray[np.float64], b: NDArray[np.float64], same_images: bool = True) -> Difference:
    """(S, N) each, the same seeds, and in each the same images in the same order. Raises ValueError if not.

    The image's part is the deviation of its difference, averaged over seeds; the seed's that of its mean.
    same_images: of all seeds; else each seed has test images of its own, and all S x N of them count.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a paired difference takes two arrays (seeds, images), not {a.shape} and {b.shape}")
    difference = a - b
    seeds, images = difference.shape
    return Difference(
        float(difference.mean()),
        _standard_error(difference.mean(0) if same_images else difference.flatten()) if images > 1 else 0.0,
        _standard_error(difference.mean(1)),
        images,
        seeds,
    )


def of_seeds(a: NDArray[np.float64], b: NDArray[np.float64]) -> Difference:
    """(S,) each: numbers that belong to a whole run, such as a distance."""
    return paired(a[:, None], b[:, None])


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
