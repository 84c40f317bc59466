"""Every claim of a comparison as a sentence with its difference and its error; losses first.

NP-DRAW is compared with each other kind, on the images that served for no choice, at each fraction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.registry import KINDS
from npdraw_dist.data.splits import unit_hash
from npdraw_dist.evaluate.measured import Measured
from npdraw_dist.evaluate.paired import SURE, Difference, of_seeds, paired

OURS = "npdraw"


@dataclass(frozen=True)
class Measure:
    """A number that claims are about. unit: as it stands after a value. less: whether less is better."""

    name: str
    title: str
    unit: str
    less: bool = True
    decimals: int = 2


NLL = Measure("nll", "NLL", " nats")
ELBO = Measure("elbo", "ELBO", " nats", less=False)
DISTANCES = (
    Measure("frechet_distance", "Frechet distance", "", decimals=3),
    Measure("kernel_distance", "kernel distance", "", decimals=4),
    Measure("precision", "precision", "", less=False, decimals=3),
    Measure("recall", "recall", "", less=False, decimals=3),
)


@dataclass(frozen=True)
class Claim:
    """NP-DRAW against another kind by a measure. difference: ours - other."""

    measure: Measure
    kind: str
    fraction: float
    difference: Difference

    @property
    def gain(self) -> float:
        """By how much NP-DRAW is better; negative where it is worse."""
        return -self.difference.mean if self.measure.less else self.difference.mean

    @property
    def verdict(self) -> str:
        """`loss`, `open` or `gain`. What is not told apart from 0 is open, whatever its sign."""
        if not self.difference.is_sure:
            return "open"
        return "gain" if self.gain > 0 else "loss"

    def sentence(self) -> str:
        found, measure = self.difference, self.measure
        words = "lower" if found.mean < 0 else "higher"
        size = f"{abs(found.mean):.{measure.decimals}f}{measure.unit}"
        errors = [] if found.images == 1 else [f"{found.se_images:.{measure.decimals}f} over images"]
        if not math.isnan(found.se_seeds):
            errors.append(f"{found.se_seeds:.{measure.decimals}f} over seeds")
        counted = f"{found.seeds} seed{'s' * (found.seeds > 1)}"
        if found.images > 1:
            counted = f"{found.images:,} images, {counted}"
        end = {
            "loss": "NP-DRAW is worse.",
            "gain": "NP-DRAW is better.",
            "open": f"not told apart at {SURE:g} standard errors.",
        }[self.verdict]
        return (
            f"At {100 * self.fraction:g}% of the images the {measure.title} of NP-DRAW is {size} {words} "
            f"than that of {KINDS[self.kind].title} (standard errors "
            f"{' and '.join(errors) or 'unknown'}; {counted}): {end}"
        )


def served(ids: Sequence[str], count: int) -> NDArray[np.bool_]:
    """Which images have served for choices: the `count` that `evaluate --images` takes."""
    hashes = np.array([unit_hash(0, "evaluate", name) for name in ids])
    chosen = np.zeros(len(ids), bool)
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen


def of_kind(
    measured: Sequence[Measured], kind: str, fraction: float, role: str = "seed"
) -> dict[int, Measured]:
    """seed -> the run of a kind at a fraction."""
    own = [m for m in measured if (m.entry.kind, m.entry.fraction, m.entry.role) == (kind, fraction, role)]
    return {m.entry.seed: m for m in own}


def image_values(run: Measured, name: str, count_served: int) -> NDArray[np.float64]:
    """(N,) the NLL or ELBO of the images that served for no choice."""
    values: NDArray[np.float64] = getattr(run, name)
    return values[~served(run.ids, count_served)]


def compare(
    ours: Mapping[int, Measured], other: Mapping[int, Measured], measure: Measure, skipped: int
) -> Difference | None:
    """Ours - other, over the seeds of both. skipped: images that served for choices. None without numbers.

    Raises ValueError if two runs of a seed were not scored on the same images.
    """
    seeds = sorted(set(ours) & set(other))
    pairs = [(ours[seed], other[seed]) for seed in seeds]
    if not pairs:
        return None
    if measure in (NLL, ELBO):
        if any(a.ids != b.ids for a, b in pairs):
            raise ValueError("runs of the same seed were scored on other images")
        a, b = ([image_values(pair[i], measure.name, skipped) for pair in pairs] for i in (0, 1))
        return paired(a, b, all(pair[0].ids == pairs[0][0].ids for pair in pairs))
    if any(measure.name not in run.numbers for pair in pairs for run in pair):
        return None
    ours_of, other_of = (np.array([pair[i].numbers[measure.name] for pair in pairs]) for i in (0, 1))
    return of_seeds(ours_of, other_of)


def claims(measured: Sequence[Measured], skipped: int) -> list[Claim]:
    """All claims: by fraction from the largest on, measure and kind."""
    kinds = [kind for kind in KINDS if kind != OURS and any(m.entry.kind == kind for m in measured)]
    found = []
    for fraction in sorted({m.entry.fraction for m in measured}, reverse=True):
        ours = of_kind(measured, OURS, fraction)
        for measure in (NLL, ELBO, *DISTANCES):
            for kind in kinds:
                difference = compare(ours, of_kind(measured, kind, fraction), measure, skipped)
                if difference is not None:
                    found.append(Claim(measure, kind, fraction, difference))
    return found
