"""NP-DRAW against each other kind on the same images and seeds: paired differences, standard errors.

Shapes: S seeds, N images. A number belongs to an image, or to a whole run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.registry import KINDS
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.evaluate.measured import Measured

OURS = "npdraw"
OF_IMAGES = ("nll_iwae", "elbo")
DISTANCES = ("frechet_distance", "kernel_distance", "precision", "recall")
INTERVAL = 2.0  # standard errors to either side of a difference


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
        """Both together: sqrt(se_images^2 + se_seeds^2); with one seed that of images alone."""
        return math.hypot(self.se_images, 0.0 if math.isnan(self.se_seeds) else self.se_seeds)


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


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def served(ids: Sequence[str], count: int) -> NDArray[np.bool_]:
    """Which images have served for choices: the `count` that `evaluate --images` takes."""
    hashes = np.array([unit_hash(0, "evaluate", name) for name in ids])
    chosen = np.zeros(len(ids), bool)
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen


@dataclass(frozen=True)
class Comparison:
    """The runs of one or more sweeps, and what stands beside them in the report.

    search: fraction -> kind -> NLL of its trials on validation, best first. references: `floor` and `ceiling`
    -> distance -> value. served: test images that have served for choices; differences leave them out.
    """

    measured: Sequence[Measured]
    search: Mapping[float, Mapping[str, Sequence[float]]]
    references: Mapping[str, Mapping[str, float]]
    protocol: Mapping[str, Any]
    served: int = 0

    @property
    def fractions(self) -> list[float]:
        """The fractions of the training images, the largest first."""
        return sorted({run.entry.fraction for run in self.measured}, reverse=True)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if any(run.entry.kind == kind for run in self.measured)]

    def runs(self, kind: str, fraction: float, role: str = "seed") -> dict[int, Measured]:
        """seed -> the run of a kind at a fraction."""
        key = (kind, fraction, role)
        found = (run for run in self.measured if (run.entry.kind, run.entry.fraction, run.entry.role) == key)
        return {run.entry.seed: run for run in found}

    def leading(self, fraction: float) -> list[Measured]:
        """The run of each kind at a fraction of which curve and samples are shown."""
        return [run for run in self.measured if run.entry.fraction == fraction and run.entry.leading]

    def values(self, run: Measured, name: str) -> NDArray[np.float64]:
        """A run's numbers: (N,) of the images that served for no choice, or (1,) of the whole run."""
        if name in OF_IMAGES:
            found: NDArray[np.float64] = getattr(run, name)
            return found[~served(run.ids, self.served)]
        return np.array([run.numbers[name]])

    def _difference(self, kind: str, fraction: float, name: str) -> Difference | None:
        """NP-DRAW's number minus that of `kind`, over the seeds of both; None without numbers."""
        ours, others = self.runs(OURS, fraction), self.runs(kind, fraction)
        pairs = [(ours[seed], others[seed]) for seed in sorted(set(ours) & set(others))]
        if not pairs or (name in DISTANCES and any(name not in run.numbers for p in pairs for run in p)):
            return None
        if name in OF_IMAGES and any(a.ids != b.ids for a, b in pairs):
            raise ValueError("runs of the same seed were scored on other images")
        a, b = ([self.values(pair[i], name) for pair in pairs] for i in (0, 1))
        return paired(a, b, name in DISTANCES or all(run.ids == pairs[0][0].ids for run, _ in pairs))

    @cached_property
    def differences(self) -> dict[tuple[float, str, str], Difference]:
        """(fraction, measure, kind) -> the difference; the largest fraction first.

        Raises ValueError if two runs of a seed were not scored on the same images.
        """
        keys = [
            (fraction, name, kind)
            for fraction in self.fractions
            for name in (*OF_IMAGES, *DISTANCES)
            for kind in self.kinds
            if kind != OURS
        ]
        found = {key: self._difference(key[2], key[0], key[1]) for key in keys}
        return {key: difference for key, difference in found.items() if difference is not None}
