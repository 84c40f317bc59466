"""Any range of rows of listed shards of parses, in order: streamed by Ray Data, or read at once.

`ray.data.read_parquet` keeps neither the order of the files given (it deals them to buckets) nor a
file given twice, and fails where a node dies under its footer readers; so the pieces to read are the
data set's items here and a map reads them, whose tasks Ray runs again.
Shapes: N images, C channels, H x W pixels, T steps.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.storage import list_files
from npdraw_dist.data.parses import ROW_GROUP, to_columns

PIECE_ROWS = 4 * ROW_GROUP  # rows of one read task, so that a large shard is no large block
READERS = 8  # threads of one process
TASKS = 2  # read tasks at once for each rank
STORE_BYTES = 128 << 20  # of the object store for each rank
COLUMNS = ["image", "whether", "where", "what"]


@dataclass(frozen=True)
class ShardFile:
    """A Parquet file of parses. rows: as its metadata says."""

    path: str
    rows: int


def list_shards(filesystem: fs.FileSystem, folder: str) -> list[ShardFile]:
    """The Parquet files below `folder`, by name; only their metadata is read. Raises UserError on damage."""
    paths = [path for path, _ in list_files(filesystem, folder) if path.endswith(".parquet")]

    def rows(path: str) -> int:
        try:
            return int(pq.read_metadata(path, filesystem=filesystem).num_rows)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{path} is no readable shard of parses ({error}); run the stage `parse` again"
            ) from None

    with ThreadPoolExecutor(16) as pool:
        return [ShardFile(path, count) for path, count in zip(paths, pool.map(rows, paths), strict=True)]


def stream(files: Sequence[ShardFile], filesystem: fs.FileSystem, start: int, stop: int) -> Iterator[Batch]:
    """Rows [start, stop) of the files one after another, in order, as batches of 1 to PIECE_ROWS images.

    Files, and row groups of 1,024, outside the range are not decoded. A file may be listed twice.
    """
    for table in tables(files, filesystem, start, stop, COLUMNS):
        images, z = to_columns(table)
        yield Batch(torch.tensor(images), z)


def tables(
    files: Sequence[ShardFile], filesystem: fs.FileSystem, start: int, stop: int, columns: list[str]
) -> Iterator[pa.Table]:
    """The columns of the rows that `stream` gives."""
    pieces = _pieces(files, start, stop)
    if not pieces:
        return
    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        partial(_read, filesystem=filesystem, columns=columns),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.TaskPoolStrategy(size=min(TASKS, len(pieces))),
    )
    context = dataset.context
    context.enable_progress_bars = context.print_on_execution_start = False
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(object_store_memory=STORE_BYTES)
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _pieces(files: Sequence[ShardFile], start: int, stop: int) -> list[dict[str, Any]]:
    """path, start, stop of the rows to read in each file, cut at multiples of PIECE_ROWS."""
    pieces: list[dict[str, Any]] = []
    before = 0
    for file in files:
        first, last = max(start - before, 0), min(stop - before, file.rows)
        while first < last:
            end = min((first // PIECE_ROWS + 1) * PIECE_ROWS, last)
            pieces.append({"path": file.path, "start": first, "stop": end})
            first = end
        before += file.rows
    return pieces


def read_table(
    files: Sequence[ShardFile], filesystem: fs.FileSystem, start: int, stop: int, columns: list[str]
) -> pa.Table:
    """The rows that `tables` gives, read in this process: for those that all end in its memory.

    Ray Data would start four actors for it, seconds before the first row.
    """

    def read(piece: dict[str, Any]) -> pa.Table:
        return _rows(**piece, filesystem=filesystem, columns=columns)

    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables(pool.map(read, _pieces(files, start, stop)))


def _read(piece: dict[str, np.ndarray], filesystem: fs.FileSystem, columns: list[str]) -> pa.Table:
    """`_rows` of the one piece in a batch of Ray Data."""
    path, start, stop = str(piece["path"][0]), int(piece["start"][0]), int(piece["stop"][0])
    return _rows(path, start, stop, filesystem, columns)


def _rows(path: str, start: int, stop: int, filesystem: fs.FileSystem, columns: list[str]) -> pa.Table:
    """Decodes the row groups that hold rows [start, stop) of a file."""
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            groups = range(file.metadata.num_row_groups)
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
            first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
            table = file.read_row_groups(list(groups[first : last + 1]), columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path} is no readable shard of parses ({error}); run the stage `parse` again"
        ) from None
    offset = start - (int(ends[first - 1]) if first else 0)
    return table.slice(offset, stop - start)
