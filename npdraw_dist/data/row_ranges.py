"""Ranges and groups of rows of Parquet files of parses, and how they are read.

G groups.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.core.errors import UserError

READERS = 16  # threads of one process


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of a file."""

    path: str
    start: int
    stop: int


def damaged(path: str, error: Exception) -> UserError:
    return UserError(f"{path} is no readable shard of parses ({error}); run the stage `parse` again")


def read_in_task(row: dict[str, NDArray[Any]], filesystem: fs.FileSystem, columns: list[str]) -> pa.Table:
    """Reads the pieces in a batch of one row of Ray Data."""
    each = zip(row["path"][0], row["start"][0], row["stop"][0], strict=True)
    pieces = [RowRange(str(path), int(start), int(stop)) for path, start, stop in each]
    for piece in pieces:
        if isinstance(filesystem, fs.LocalFileSystem) and not Path(piece.path).exists():
            import ray

            node = ray.util.get_node_ip_address()
            raise FileNotFoundError(
                f"{piece.path} cannot be read from {node}, whose disk is not the shared one"
            )
    return read_ranges(pieces, filesystem, columns)


def read_ranges(pieces: Sequence[RowRange], filesystem: fs.FileSystem, columns: list[str]) -> pa.Table:
    """The rows of all pieces, one after another. A store that is far answers them at once."""
    if len(pieces) == 1:
        return read_range(pieces[0], filesystem, columns)
    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables(pool.map(lambda piece: read_range(piece, filesystem, columns), pieces))


def read_range(piece: RowRange, filesystem: fs.FileSystem, columns: list[str]) -> pa.Table:
    """Decodes only the row groups that hold the rows."""
    try:
        # All columns are asked for at once: a store answers each request after a while.
        with pq.ParquetFile(piece.path, filesystem=filesystem, pre_buffer=True) as file:
            groups = range(file.metadata.num_row_groups)
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
            first, last = (
                np.searchsorted(ends, piece.start, "right"),
                np.searchsorted(ends, piece.stop, "left"),
            )
            table = file.read_row_groups(list(groups[first : last + 1]), columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise damaged(piece.path, error) from None
    offset = piece.start - (int(ends[first - 1]) if first else 0)
    return table.slice(offset, piece.stop - piece.start)


@dataclass(frozen=True)
class RowGroups:
    """The rows of some files in groups, each of one file, in the order of the files.

    Prepared files are often sorted, such as by font: groups of many files in random order mix them, whole
    files do so less. file, start, rows: (G,), the number of its file, its first row there, and its rows.
    """

    paths: Sequence[str]
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, paths: Sequence[str], rows: Sequence[int], most: int) -> "RowGroups":
        """rows: of each file. most: rows of a group."""
        sizes = np.array(rows, np.int64)
        counts = -(-sizes // most)
        file = np.repeat(np.arange(len(sizes)), counts)
        start = most * (np.arange(len(file)) - np.repeat(counts.cumsum() - counts, counts))
        return cls(paths, file, start, np.minimum(sizes[file] - start, most))

    def piece(self, group: int, first: int, last: int) -> RowRange:
        """Rows [first, last) of a group."""
        start = int(self.start[group])
        return RowRange(self.paths[self.file[group]], start + first, start + last)

    def reads(
        self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]], most: int
    ) -> list[list[RowRange]]:
        """The pieces of rows [start, stop) of each range in turn, counted over the groups in `order`.

        Pieces that follow each other are read together, up to `most` rows.
        """
        ends = self.rows[order].cumsum()
        reads: list[list[RowRange]] = []
        left = 0  # rows that the last read may still have
        for start, stop in ranges:
            position = int(ends.searchsorted(start, "right"))
            while start < stop:
                group, end = int(order[position]), int(ends[position])
                before = end - int(self.rows[group])
                piece = self.piece(group, start - before, min(stop, end) - before)
                if left < piece.stop - piece.start:
                    reads.append([])
                    left = most
                reads[-1].append(piece)
                left -= piece.stop - piece.start
                start, position = end, position + 1
        return reads
