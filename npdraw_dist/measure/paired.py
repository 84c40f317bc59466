"""Tests the differences between models, paired by seed and image, by Student's t with Holm's correction.

Shapes: S seeds, N images.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import t as student

from npdraw_dist.measure.bounds import standard_error
from npdraw_dist.system.errors import UserError

LEVEL = 0.05  # accepted chance of at least one false claim in a report; intervals have confidence 1 - LEVEL

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Difference:
    """The mean of a - b, numbers of two models, over S seeds and N images. Each seed trains both models once.

    se_images: standard error of the mean over images; 0 if a run has one number, or if each seed has its own
    images, whose noise se_seeds then includes. se_seeds: standard error over seeds; NaN with one seed.
    """

    mean: float
    se_images: float
    se_seeds: float
    images: int
    seeds: int

    @property
    def error(self) -> float:
        """sqrt(se_images^2 + se_seeds^2); NaN with one seed. Both terms include the noise of each score."""
        return math.hypot(self.se_images, self.se_seeds)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of `error` (Satterthwaite 1946), at least min(S, N) - 1; NaN with one seed."""
        if self.seeds < 2:
            return math.nan
        if not self.error:
            return float(self.seeds - 1)
        shares = (self.se_seeds / self.error) ** 4 / (self.seeds - 1)
        if self.se_images:
            shares += (self.se_images / self.error) ** 4 / (self.images - 1)
        return 1 / shares

    @property
    def half(self) -> float:
        """Half the width of the confidence interval of level 1 - LEVEL; NaN with one seed."""
        return float(student.ppf(1 - LEVEL / 2, self.degrees)) * self.error

    @property
    def p_value(self) -> float:
        """Probability of a mean at least this far from 0 if the true mean is 0; NaN with one seed."""
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * student.sf(abs(self.mean) / self.error, self.degrees))


def paired(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Difference:
    """The `Difference` of S pairs of mappings image -> number. Raises UserError if a pair's images differ."""
    if any(list(a) != list(b) for a, b in pairs):
        raise UserError("two runs of the same seed were scored on different images")
    found = [np.array([a[image] - b[image] for image in a]) for a, b in pairs]
    seeds, crossed = np.array([x.mean() for x in found]), all(list(a) == list(pairs[0][0]) for a, _ in pairs)
    images = np.mean(found, 0) if crossed else np.concatenate(found)
    se_images = standard_error(images) if crossed and len(images) > 1 else 0.0
    return Difference(float(seeds.mean()), se_images, standard_error(seeds), len(images), len(seeds))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Corrects the p-values of claims (Holm 1979); a claim stands if its corrected value is at most LEVEL.

    NaN marks a claim that cannot be tested. Such a claim does not count towards the correction.
    """
    tested = sorted((key for key, p in p_values.items() if not math.isnan(p)), key=lambda key: p_values[key])
    found, largest = dict(p_values), 0.0
    for place, key in enumerate(tested):
        largest = max(largest, min((len(tested) - place) * p_values[key], 1.0))
        found[key] = largest
    return found
