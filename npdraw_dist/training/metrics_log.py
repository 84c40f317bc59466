"""The metrics of a training run, a row a validation, as `metrics.jsonl`; `training.events` has TensorBoard's.

Between validations, `training.jsonl` has rows of the loss alone. Rank 0 writes a
row before the checkpoint of the same step appears. So a kill at any moment loses no row; it can leave a row
twice, since training repeats what is after the last checkpoint. Readers take the later one.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs

from npdraw_dist.core.storage import list_files, read_bytes, write_text

# The file NAME.jsonl. An object store cannot append: there, each row is an object in a folder of this name
# until the stage ends.
ROWS, RECENT_ROWS = "metrics", "training"
METRICS = f"{ROWS}.jsonl"
RECENT = "recent"  # begins the names of means over the images since the row before in `training.jsonl`
Record = dict[str, float]  # metric -> value at one validation; also `images_seen` and `step`


def read_metrics(filesystem: fs.FileSystem, folder: str, rows: str = ROWS) -> list[Record]:
    """The rows of a run in `folder`, oldest first, finished or not; [] if there are none."""
    path = f"{folder}/{rows}.jsonl"
    texts = []
    if filesystem.get_file_info(path).type == fs.FileType.File:
        texts.append(read_bytes(filesystem, path).decode())
    texts += [read_bytes(filesystem, row).decode() for row in _row_objects(filesystem, folder, rows)]
    return latest(json.loads(line) for text in texts for line in _whole_lines(text))


def latest(rows: Iterable[Record]) -> list[Record]:
    """`rows` without those that a later row replaces: a row replaces all earlier ones from its step on."""
    kept: list[Record] = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _row_objects(filesystem: fs.FileSystem, folder: str, rows: str) -> list[str]:
    """The paths of the rows that are objects, oldest first."""
    return [path for path, _ in list_files(filesystem, f"{folder}/{rows}") if path.endswith(".json")]


def _whole_lines(text: str) -> list[str]:
    """The lines of `text` without the last one if a kill left a part of it."""
    return text[: text.rfind("\n") + 1].splitlines()


class Journal:
    """Adds rows to the metrics of the run in `folder`, or to its RECENT_ROWS."""

    def __init__(self, filesystem: fs.FileSystem, folder: str, rows: str = ROWS) -> None:
        self.filesystem, self.folder, self.rows = filesystem, folder, rows
        self._next: int | None = None  # number of the next object

    def add(self, row: Record) -> None:
        """Writes a row; it is there when this returns."""
        line = json.dumps(row) + "\n"
        if isinstance(self.filesystem, fs.LocalFileSystem):
            append_line(Path(self.folder) / f"{self.rows}.jsonl", line)
            return
        if self._next is None:
            last = _row_objects(self.filesystem, self.folder, self.rows)[-1:]
            self._next = int(Path(last[0]).stem) + 1 if last else 0
        write_text(self.filesystem, f"{self.folder}/{self.rows}/{self._next:09d}.json", line)
        self._next += 1

    def compact(self) -> list[Record]:
        """Writes the whole file at the end of a stage, each row once; returns the rows."""
        rows = read_metrics(self.filesystem, self.folder, self.rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = f"{self.folder}/{self.rows}.jsonl"
        if (
            self.filesystem.get_file_info(path).type != fs.FileType.File
            or read_bytes(self.filesystem, path).decode() != text
        ):
            write_text(self.filesystem, path, text)
        if list_files(self.filesystem, f"{self.folder}/{self.rows}"):
            self.filesystem.delete_dir(f"{self.folder}/{self.rows}")
        return rows


def append_line(path: Path, line: str) -> None:
    """Appends `line` to a file, in place of the part of a line that a kill left at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = size = file.tell()
        while end > 0:
            start = max(end - 4096, 0)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        file.write(line.encode())
