"""A seeded choice of parsed images: only their row groups are read, one at a time.

Shapes: N images of the split, n chosen, C channels, H x W pixels, T steps.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.core.parts import Batch
from npdraw_dist.data.parses import to_columns
from npdraw_dist.data.stream import COLUMNS, ShardFile


def read_chosen(files: Sequence[ShardFile], filesystem: fs.FileSystem, limit: int, seed: int) -> Batch:
    """At most `limit` images of all `files`, so that classes stay mixed.

    The choice and its order depend on the ids and the seed, not on the shards. Of the rows that are not
    chosen the memory holds the ids, and the images of one row group.
    """
    return read_rows(files, filesystem, _rows(files, filesystem, limit, seed))


def read_rows(files: Sequence[ShardFile], filesystem: fs.FileSystem, wanted: NDArray[np.int64]) -> Batch:
    """The rows `wanted` (n,) of all files, one after another, in the order asked for."""
    starts = np.cumsum([0] + [file.rows for file in files])
    places, parts = [], []
    for file, start in zip(files, starts[:-1], strict=True):
        place = np.flatnonzero((wanted >= start) & (wanted < start + file.rows))
        if len(place) == 0:
            continue
        with pq.ParquetFile(file.path, filesystem=filesystem) as table:
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            first = start + np.cumsum([0, *sizes])
            groups = np.searchsorted(first, wanted[place], side="right") - 1
            for group in np.unique(groups):
                inside = place[groups == group]
                images, z = to_columns(table.read_row_group(int(group), columns=COLUMNS))
                rows = wanted[inside] - first[group]
                parts.append(Batch(torch.from_numpy(images[rows]), z[torch.from_numpy(rows)]))
                places.append(inside)
    return Batch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(places)))]


def _rows(files: Sequence[ShardFile], filesystem: fs.FileSystem, limit: int, seed: int) -> NDArray[np.int64]:
    """(n,): the chosen ones of the rows of all files, one file after another."""

    def read(file: ShardFile) -> list[pa.Array]:
        return list(pq.read_table(file.path, filesystem=filesystem, columns=["id"])["id"].chunks)

    with ThreadPoolExecutor(8) as pool:
        ids = pa.chunked_array([part for parts in pool.map(read, files) for part in parts], pa.string())
    order = pc.sort_indices(ids).to_numpy()
    chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:limit]
    return order[chosen.numpy()].astype(np.int64)
