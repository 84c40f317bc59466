"""Files of parses cut into groups of rows, which a stream shuffles.

G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.data.row_ranges import RowRange


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

        Those that follow each other are read together, up to `most` rows.
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
