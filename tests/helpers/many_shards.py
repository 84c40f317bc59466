"""A pretended source of any number of small reads."""

from functools import partial

import numpy as np
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.rows import Reject, Rows
from npdraw_dist.data.shards import Source

DATA = DataConfig.model_validate({"source": "imagefolder", "path": "x", "image_size": 2, "channels": 1})


def small_rows(rows: int, flawed: bool, number: int) -> Rows:
    """`rows` images of 2 x 2 pixels that show the number. flawed: and a reject and a blank one."""
    images = np.full((rows, 1, 2, 2), number % 256, np.uint8)
    ids = [f"{number}-{i}" for i in range(rows)]
    if not flawed:
        return Rows(ids, images)
    return Rows(ids, images, None, [Reject(f"bad-{number}", "unreadable")], {"blank": 1})


def many_shards(number: int, rows: int = 2, flawed: bool = False, data: DataConfig = DATA) -> Source:
    """`number` reads of `rows` training images each."""
    read = partial(small_rows, rows, flawed)
    train = [partial(read, n) for n in range(number)]
    counts = {"train": number * rows, "valid": 0, "test": 0}
    inputs = Inputs(fs.LocalFileSystem(), "", ())
    return Source(data, 0, {"train": train, "valid": [], "test": []}, counts, inputs)  # type: ignore[arg-type]
