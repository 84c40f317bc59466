"""Parses cut into groups of rows, which a stream shuffles.

G groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.core.parts import Batch
from npdraw_dist.data.parses import READ_ROWS, ROW_GROUP, Parses
from npdraw_dist.data.row_ranges import RowRange


@dataclass(frozen=True)
class RowGroups:
    """The rows of `parses` in groups of at most ROW_GROUP, each of one file, in the order of the files.

    Prepared files are often sorted, such as by font: groups of many files in random order mix them, whole
    files do so less. file, start, rows: (G,), the number of its file, its first row there, and its rows.
    """

    parses: Parses
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, parses: Parses) -> "RowGroups":
        sizes = np.array([file.rows for file in parses.files], np.int64)
        counts = -(-sizes // ROW_GROUP)
        file = np.repeat(np.arange(len(sizes)), counts)
        start = ROW_GROUP * (np.arange(len(file)) - np.repeat(counts.cumsum() - counts, counts))
        return cls(parses, file, start, np.minimum(sizes[file] - start, ROW_GROUP))

    def piece(self, group: int, first: int = 0, last: int = ROW_GROUP) -> RowRange:
        """Rows [first, last) of a group."""
        start, rows = int(self.start[group]), int(self.rows[group])
        return RowRange(self.parses.files[self.file[group]].path, start + first, start + min(last, rows))

    def stream(self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Rows [start, stop) of each range in turn, counted over the groups in `order`.

        Read ahead as by `Parses.stream`, some groups at once, in batches of READ_ROWS or less.
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
                    left = READ_ROWS
                reads[-1].append(piece)
                left -= piece.stop - piece.start
                start, position = end, position + 1
        return self.parses.stream_pieces(reads)
