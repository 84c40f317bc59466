"""What every section measures on, and how it takes a time.

Shapes: N images, C channels, h x w canvas.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.data.sources import open_source

QUICK_IMAGES, FULL_IMAGES = 4_000, 60_000

# Name -> value; the unit is in the name.
Figures = dict[str, float]
# The same with what is no number: versions, names, None for unknown.
Facts = dict[str, float | str | None]


@dataclass(frozen=True)
class Workload:
    """The settings, training images (N, C, H, W) uint8 of their source, and how much to do.

    dense: also the VAE step of the dense reference.
    """

    experiment: Experiment
    images: NDArray[np.uint8]
    quick: bool
    dense: bool = True

    @property
    def canvases(self) -> NDArray[np.uint8]:
        """(N, C, h, w) uint8."""
        return canvas_bytes(self.images, self.experiment.grid.downscale)


def open_workload(experiment: Experiment, quick: bool, dense: bool = True) -> Workload:
    """Reads at most QUICK_IMAGES or FULL_IMAGES training images. Raises UserError where there are none."""
    limit = QUICK_IMAGES if quick else FULL_IMAGES
    found: list[NDArray[np.uint8]] = []
    for shard in open_source(experiment.data, experiment.seed).shards("train"):
        if sum(len(images) for images in found) >= limit:
            break
        found.append(shard.read().images)
    return Workload(experiment, np.concatenate(found)[:limit], quick, dense)


def seconds_of(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The median seconds of each function, in turns, so that a busy moment meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]
