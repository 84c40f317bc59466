"""Rows of several shards as one, and parses in folders without a list."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs

from npdraw_dist.core.parts import Batch
from npdraw_dist.core.storage import list_files
from npdraw_dist.data.parses import Parses, ShardFile, write_list
from npdraw_dist.data.rows import Rows


def concat(rows: Sequence[Rows]) -> Rows:
    """One `Rows` of several (at least one). Labels are kept if all have them."""
    labels = [part.labels for part in rows if part.labels is not None]
    return Rows(
        [name for part in rows for name in part.ids],
        np.concatenate([part.images for part in rows]),
        np.concatenate(labels) if len(labels) == len(rows) else None,
        [reject for part in rows for reject in part.rejects],
    )


def open_parses(filesystem: fs.FileSystem, folder: str) -> Parses:
    """The Parquet files below a folder, by name."""
    paths = [path for path, _ in list_files(filesystem, folder) if path.endswith(".parquet")]
    rows = [pq.read_metadata(path, filesystem=filesystem).num_rows for path in paths]
    return Parses(filesystem, tuple(map(ShardFile, paths, rows)))


def list_parses(filesystem: fs.FileSystem, root: str) -> None:
    """Writes the list of the stage `parse`, of what lies in its folder."""
    rows: dict[str, dict[str, int]] = {}
    for file in open_parses(filesystem, root).files:
        name = file.path[len(root) + 1 :]
        rows.setdefault(name.partition("/")[0], {})[name] = file.rows
    write_list(filesystem, root, rows)


def stream(parses: Parses, ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
    """Rows [start, stop) of each range, in the order of the files."""
    return parses.stream_groups(np.arange(len(parses.groups.rows)), ranges)
