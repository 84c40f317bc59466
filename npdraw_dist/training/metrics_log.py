"""The metrics of a training run, a row a validation, as `metrics.jsonl`; `training.events` has TensorBoard's.

Between validations, `training.jsonl` has rows of the loss alone. A row precedes the checkpoint of its step,
so a kill loses none, and replaces those from its step on, which training repeats.
"""

import json

from pyarrow import fs

from npdraw_dist.core.storage import read_bytes, write_text

ROWS, RECENT_ROWS = "metrics", "training"  # the file NAME.jsonl
RECENT = "recent"  # begins the names of means over the images since the row before in `training.jsonl`
Record = dict[str, float]  # metric -> value at one validation; also `images_seen` and `step`


def read_metrics(filesystem: fs.FileSystem, folder: str, rows: str = ROWS) -> list[Record]:
    """The rows of a run in `folder`, oldest first, finished or not; [] if there are none."""
    path = f"{folder}/{rows}.jsonl"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return []
    return [json.loads(line) for line in read_bytes(filesystem, path).decode().splitlines()]


class Journal:
    """Adds rows to NAME.jsonl of the run in `folder`, written anew each time: a kill leaves no half row."""

    def __init__(self, filesystem: fs.FileSystem, folder: str, rows: str = ROWS) -> None:
        self.filesystem, self.folder, self.name = filesystem, folder, rows
        self._rows: list[Record] | None = None

    def add(self, row: Record) -> None:
        """Writes a row; it is there when this returns."""
        if self._rows is None:
            self._rows = read_metrics(self.filesystem, self.folder, self.name)
        self._rows = [*(one for one in self._rows if one["step"] < row["step"]), row]
        text = "".join(json.dumps(one) + "\n" for one in self._rows)
        write_text(self.filesystem, f"{self.folder}/{self.name}.jsonl", text)
