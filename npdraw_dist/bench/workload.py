"""What every section measures on: the settings and training images.

Shapes: N images, C channels, H x W pixels, h x w canvas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.bench.timing import timed
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.data.shards import FileShard, Shard
from npdraw_dist.data.sources import open_source

QUICK_IMAGES, FULL_IMAGES = 4_000, 60_000
LEAST_SHARDS = 24  # a shard may be of one font or class

# Name -> value; the unit is in the name.
Figures = dict[str, float]
# The same with values that are not numbers: versions, names, None for unknown.
Facts = dict[str, float | str | None]


@dataclass(frozen=True)
class Reading:
    """What it costs to make an image: to read and decode it, or to draw it. Averages over the shards.

    seconds: of an image. once_s: the image's share of what a worker does once for each file, such as the
    search for the twins of a font. shards: of a file, so at most that many workers do it.
    """

    seconds: float = 0.0
    once_s: float = 0.0
    shards: float = 1.0


@dataclass(frozen=True)
class Workload:
    """The settings, training images (N, C, H, W) uint8 of their source, and how much to measure.

    quick: fewer images and repeats. dense: measure the VAE step of the dense reference too. sizes: numbers
    of images of the section `scale`; None: its own. reading: how long the source takes.
    """

    experiment: Experiment
    images: NDArray[np.uint8]
    quick: bool
    dense: bool = True
    sizes: tuple[int, ...] | None = None
    reading: Reading = Reading()

    @property
    def canvases(self) -> NDArray[np.uint8]:
        """(N, C, h, w) uint8."""
        return canvas_bytes(self.images, self.experiment.grid.downscale)


def open_workload(
    experiment: Experiment, quick: bool, dense: bool = True, sizes: tuple[int, ...] | None = None
) -> Workload:
    """Reads at most QUICK_IMAGES or FULL_IMAGES training images, in random order, of shards drawn at random.

    So the first images already stand for all. Raises UserError if there are none, or clearly too few for the
    bank.
    """
    limit, rng = QUICK_IMAGES if quick else FULL_IMAGES, np.random.default_rng(experiment.seed)
    shards = open_source(experiment.data, experiment.seed).shards("train")
    order = rng.permutation(len(shards))
    # In the order of the source, as a worker reads them: it keeps what it needs for a whole file.
    found, reading = _timed([shards[i] for i in sorted(order[:LEAST_SHARDS])], _files(shards))
    for number in order[LEAST_SHARDS:]:
        if sum(map(len, found)) >= limit:
            break
        found.append(shards[number].read().images)
    images = np.concatenate(found)
    images = images[rng.permutation(len(images))[:limit]]
    k, places = experiment.bank.size, experiment.canvas_grid.places
    if k > len(images) * places:
        raise UserError(
            f"bank.size is {k}, but the bench's {len(images):,} images of {places} places have at most "
            f"{len(images) * places:,} patches; lower it"
        )
    return Workload(experiment, images, quick, dense, sizes, reading)


def _files(shards: Sequence[Shard]) -> dict[str, list[int]]:
    """File -> the sizes of its shards; empty for a source that lists its images."""
    sizes: dict[str, list[int]] = {}
    for shard in shards:
        if isinstance(shard, FileShard):
            sizes.setdefault(shard.part.path, []).append(shard.part.size)
    return sizes


def _timed(shards: Sequence[Shard], files: dict[str, list[int]]) -> tuple[list[NDArray[np.uint8]], Reading]:
    """The images of the shards, each read twice: what the first time took longer was done for its file."""
    found, opened = [], dict[str, float]()
    seconds = once = parts = 0.0
    for shard in shards:
        rows, first = timed(shard.read)
        second = timed(shard.read)[1]
        found.append(rows.images)
        seconds += second
        if isinstance(shard, FileShard):
            sizes = files[shard.part.path]
            for_file = opened.setdefault(shard.part.path, max(first - second, 0.0))
            once += for_file * shard.part.size / max(sum(sizes), 1)
            parts += len(sizes)
    images = max(sum(map(len, found)), 1)
    return found, Reading(seconds / images, once / images, max(parts / len(shards), 1.0))
