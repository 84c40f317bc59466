"""The rows that a stage skips: how many are allowed, and their list, rejects.jsonl."""

import json
from collections import Counter
from collections.abc import Sequence

from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import write_text
from npdraw_dist.data.rows import Reject
from npdraw_dist.data.shards import Shard

REJECTS = "rejects.jsonl"
LEAST_ROWS = 1000  # if the number of rows is unknown, a stage reads this many before it may stop early

RejectLine = dict[str, str]  # id, reason and shard, as in rejects.jsonl


def reject_lines(rejects: Sequence[Reject], shard: str) -> list[RejectLine]:
    return [{"id": reject.id, "reason": reject.reason, "shard": shard} for reject in rejects]


def write_rejects(filesystem: fs.FileSystem, folder: str, lines: Sequence[RejectLine]) -> None:
    """Writes rejects.jsonl, sorted by shard. Without rejects it only empties the file of an earlier run."""
    path = f"{folder}/{REJECTS}"
    if lines or filesystem.get_file_info(path).type == fs.FileType.File:
        in_order = sorted(lines, key=lambda line: line["shard"])
        write_text(filesystem, path, "".join(json.dumps(line) + "\n" for line in in_order))


def check_rejects(rejects: int, total: int, data: DataConfig, listed: bool = True) -> None:
    """Raises UserError if `rejects` of `total` rows are more than data.max_bad_fraction.

    listed: rejects.jsonl names them.
    """
    if rejects > data.max_bad_fraction * total:
        raise UserError(
            f"{rejects} of {total} rows of data.source {data.source} are bad, more than "
            f"data.max_bad_fraction ({data.max_bad_fraction:g}); {f'see {REJECTS}, ' if listed else ''}"
            "mend the data or raise --data.max_bad_fraction"
        )


class RejectLimit:
    """Tells while shards are read, in any order, whether too many rows are bad even if all others are good.

    total: rows of all `shards`; None if unknown. Then, once LEAST_ROWS rows are read, each shard to come
    counts as long as those read of its split. A split of which none is read is left out.
    """

    def __init__(self, data: DataConfig, shards: Sequence[Shard], total: int | None) -> None:
        self._data, self._total = data, total
        self._shards = Counter(shard.split for shard in shards)
        self._read: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self.rejects = 0

    @property
    def rows(self) -> int:
        """Rows read, rejects included."""
        return self._rows.total()

    @property
    def images(self) -> int:
        """Rows read, rejects not included."""
        return self.rows - self.rejects

    def add(self, split: str, images: int, rejects: int) -> bool:
        """Counts a shard that was read. True if too many rows are bad."""
        self._read[split] += 1
        self._rows[split] += images + rejects
        self.rejects += rejects
        total: float = max(self._total or 0, self.rows)
        if self._total is None:
            if self.rows < LEAST_ROWS:
                return False
            total = sum(rows / self._read[s] * self._shards[s] for s, rows in self._rows.items())
        return self.rejects > self._data.max_bad_fraction * total

    def check(self) -> None:
        """Raises UserError if too many of the rows read are bad."""
        check_rejects(self.rejects, self.rows, self._data)
