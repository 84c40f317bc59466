"""Differences between two kinds of models on the same images and seeds, with their standard errors.

Shapes: S seeds, N images. A number is per image, or one for each seed.
"""

import math
from collections.abc import Sequence
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


def paired(
    a: Sequence[NDArray[np.float64]], b: Sequence[NDArray[np.float64]], same_images: bool = True
) -> Difference:
    """S arrays (N,) each, of the same seeds, and of a seed the same images in the same order.

    The image's part is the deviation of its difference, averaged over seeds; the seed's that of its mean.
    same_images: of all seeds; else each seed has test images of its own, whose number may differ, and all of
    them count. Raises ValueError on other shapes.
    """
    if [x.shape for x in a] != [x.shape for x in b] or not len(a) or any(x.ndim != 1 for x in a):
        raise ValueError("a paired difference takes the same seeds and images of both")
    found = [x - y for x, y in zip(a, b, strict=True)]
    images = np.mean(found, 0) if same_images else np.concatenate(found)
    means = np.array([values.mean() for values in found])
    se_images = _standard_error(images) if len(images) > 1 else 0.0
    return Difference(float(means.mean()), se_images, _standard_error(means), len(images), len(found))


def of_seeds(a: NDArray[np.float64], b: NDArray[np.float64]) -> Difference:
    """(S,) each: numbers that belong to a whole run, such as a distance."""
    return paired(list(a[:, None]), list(b[:, None]))


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
