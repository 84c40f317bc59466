"""What every section measures on: the settings and training images.

Shapes: N images, C channels, H x W pixels, h x w canvas.
"""

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
    of images of the section `scale`; None: its own.
    """

    experiment: Experiment
    images: NDArray[np.uint8]
    quick: bool
    dense: bool = True
    sizes: tuple[int, ...] | None = None

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
    for shard in open_source(experiment.data, experiment.seed).shards("train"):
        if sum(len(images) for images in found) >= limit:
            break
        found.append(shard.read().images)
    images = np.concatenate(found)[:limit]
    k, places = experiment.bank.size, experiment.canvas_grid.places
    if k > len(images) * places:
        raise UserError(
            f"bank.size is {k}, but the bench's {len(images):,} images of {places} places have at most "
            f"{len(images) * places:,} patches; lower it"
        )
    return Workload(experiment, images, quick, dense, sizes)
