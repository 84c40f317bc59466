"""A Parquet data set of any size: the images of the workload under new ids."""

from pathlib import Path
from typing import Any

import numpy as np

from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Rows

ROWS = 1_024  # a file; an actor's first shard includes its warm-up, so ten files are too few for a median


def write_repeated(work: Workload, size: int, folder: Path) -> None:
    """Writes `size` images as Parquet files of ROWS into <folder>/data/train."""
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
    data = {
        "source": "parquet",
        "path": str(folder / "data"),
        "image_size": height,
        "channels": channels,
        "valid_fraction": 0.0,
        "test_fraction": 0.0,
        "fraction": 1.0,
    }
    return with_changes(work.experiment, {"data": data}, changes)
