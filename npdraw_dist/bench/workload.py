"""What every section measures on: the settings and training images.

Shapes: N images, C channels, H x W pixels, h x w canvas.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.data.sources import open_source

QUICK_IMAGES, FULL_IMAGES = 4_000, 60_000

# Name -> value; the unit is in the name.
Figures = dict[str, float]
# The same with values that are not numbers: versions, names, None for unknown.
Facts = dict[str, float | str | None]


@dataclass(frozen=True)
class Workload:
    """The settings, training images (N, C, H, W) uint8 of their source, and how much to measure.

    quick: fewer images and repeats. dense: measure the VAE step of the dense reference too. sizes: numbers
    of images of the section `scale`; None: its own. read_s: seconds in which the source made an image: read
    and decoded it, or drew it.
    """

    experiment: Experiment
    images: NDArray[np.uint8]
    quick: bool
    dense: bool = True
    sizes: tuple[int, ...] | None = None
    read_s: float = 0.0

    @property
    def canvases(self) -> NDArray[np.uint8]:
        """(N, C, h, w) uint8."""
        return canvas_bytes(self.images, self.experiment.grid.downscale)


def open_workload(
    experiment: Experiment, quick: bool, dense: bool = True, sizes: tuple[int, ...] | None = None
) -> Workload:
    """Reads at most QUICK_IMAGES or FULL_IMAGES training images.

    Raises UserError if there are none, or clearly too few for the bank.
    """
    limit = QUICK_IMAGES if quick else FULL_IMAGES
    found: list[NDArray[np.uint8]] = []
    source, started = open_source(experiment.data, experiment.seed), time.perf_counter()
    for shard in source.shards("train"):
        if sum(len(images) for images in found) >= limit:
            break
        found.append(shard.read().images)
    images = np.concatenate(found)
    read_s, images = (time.perf_counter() - started) / max(len(images), 1), images[:limit]
    k, places = experiment.bank.size, experiment.canvas_grid.places
    if k > len(images) * places:
        raise UserError(
            f"bank.size is {k}, but the bench's {len(images):,} images of {places} places have at most "
            f"{len(images) * places:,} patches; lower it"
        )
    return Workload(experiment, images, quick, dense, sizes, read_s)
