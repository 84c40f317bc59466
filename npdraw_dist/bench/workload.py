"""What every section measures on, a copy of it of any size on disk, and how times are taken.

Shapes: N images, C channels, H x W pixels, h x w canvas.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source

QUICK_IMAGES, FULL_IMAGES = 4_000, 60_000
LEAST_SHARDS = 24  # a shard may be of one font or class
ROWS = 1_024  # a file; an actor's first shard includes its warm-up, so ten files are too few for a median

# Name -> value; the unit is in the name.
Figures = dict[str, float]
# The same with values that are not numbers: versions, names, None for unknown.
Facts = dict[str, float | str | None]

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What `function` returns, and the seconds that it takes on the device that there is."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def median_seconds(functions: Sequence[Callable[[], object]], repeats: int, warm_up: int = 0) -> list[float]:
    """The median seconds of each function over `repeats` turns, after `warm_up` turns that do not count.

    In turns, so that a busy moment meets all that is compared.
    """
    turns = [[timed(function)[1] for function in functions] for _ in range(warm_up + repeats)]
    return [statistics.median(taken) for taken in zip(*turns[warm_up:], strict=True)]


@dataclass(frozen=True)
class Workload:
    """The settings, training images (N, C, H, W) uint8 of their source, and how much to measure.

    quick: fewer images and repeats. dense: measure the VAE step of the dense reference too. read_s: seconds
    in which the source reads, decodes or draws an image.
    """

    experiment: Experiment
    images: NDArray[np.uint8]
    quick: bool
    dense: bool = True
    read_s: float = 0.0

    @property
    def canvases(self) -> NDArray[np.uint8]:
        """(N, C, h, w) uint8."""
        return canvas_bytes(self.images, self.experiment.grid.downscale)


def open_workload(experiment: Experiment, quick: bool, dense: bool = True) -> Workload:
    """Reads at most QUICK_IMAGES or FULL_IMAGES training images, in random order, of shards drawn at random.

    So the first images already stand for all. Raises UserError if there are none, or clearly too few for the
    bank.
    """
    limit, rng = QUICK_IMAGES if quick else FULL_IMAGES, np.random.default_rng(experiment.seed)
    shards = open_source(experiment.data, experiment.seed).shards("train")
    order = rng.permutation(len(shards))
    found: list[NDArray[np.uint8]] = []
    read_s = 0.0
    # The first ones in the order of the source, as a worker reads them: it keeps what a whole file needs.
    for number in (*sorted(order[:LEAST_SHARDS]), *order[LEAST_SHARDS:]):
        if len(found) >= LEAST_SHARDS and sum(map(len, found)) >= limit:
            break
        rows, seconds = timed(shards[number].read)
        found.append(rows.images)
        read_s += seconds
    images = np.concatenate(found)
    read_s /= max(len(images), 1)
    images = images[rng.permutation(len(images))[:limit]]
    k, places = experiment.bank.size, experiment.canvas_grid.places
    if k > len(images) * places:
        raise UserError(
            f"bank.size is {k}, but the bench's {len(images):,} images of {places} places have at most "
            f"{len(images) * places:,} patches; lower it"
        )
    return Workload(experiment, images, quick, dense, read_s)


def write_repeated(work: Workload, size: int, folder: Path) -> None:
    """Writes `size` images, those of the workload under new ids, as Parquet files to <folder>/data/train."""
    train = folder / "data" / "train"
    train.mkdir(parents=True, exist_ok=True)
    for start in range(0, size, ROWS):
        numbers = np.arange(start, min(start + ROWS, size))
        rows = Rows([f"{n:08d}" for n in numbers], work.images[numbers % len(work.images)])
        (train / f"{start:08d}.parquet").write_bytes(to_parquet(rows))


def experiment_on(work: Workload, folder: Path, changes: dict[str, Any]) -> Experiment:
    """The workload's experiment on the images that `write_repeated` wrote, all of them for training."""
    channels, height, width = work.images.shape[1:]
    if height != width:
        raise UserError("repeated images have to be square")
    data = {"source": "parquet", "path": str(folder / "data"), "image_size": height, "channels": channels}
    shares = {"valid_fraction": 0.0, "test_fraction": 0.0, "fraction": 1.0}
    return with_changes(work.experiment, {"data": data | shares}, changes)
