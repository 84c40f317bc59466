"""The metrics of a training run, a row a validation, as `metrics.jsonl` and as TensorBoard events.

Rank 0 writes a row before the checkpoint of the same step appears. So a kill at any moment loses no row; it
can leave a row twice, since training repeats what is after the last checkpoint. Readers take the later one.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyarrow import fs

from npdraw_dist.core.storage import list_files, read_bytes, write_bytes, write_text

METRICS = "metrics.jsonl"
# An object store cannot append. There, each row is an object in this folder until the stage ends.
ROWS = "metrics"
EVENTS = "events.out.tfevents"  # TensorBoard reads files with this in their names, in the order of the names
MERGED = ".merged"  # at the end of the name of a file with all rows up to its step
Record = dict[str, float]  # metric -> value at one validation; also `images_seen` and `step`


def read_metrics(filesystem: fs.FileSystem, folder: str) -> list[Record]:
    """The rows of a run in `folder`, oldest first, finished or not; [] if there are none."""
    path = f"{folder}/{METRICS}"
    texts = []
    if filesystem.get_file_info(path).type == fs.FileType.File:
        texts.append(read_bytes(filesystem, path).decode())
    texts += [read_bytes(filesystem, row).decode() for row in _row_objects(filesystem, folder)]
    return latest(json.loads(line) for text in texts for line in _whole_lines(text))


def latest(rows: Iterable[Record]) -> list[Record]:
    """`rows` without those that a later row replaces: a row replaces all earlier ones from its step on."""
    kept: list[Record] = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _row_objects(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """The paths of the rows that are objects, oldest first."""
    return [path for path, _ in list_files(filesystem, f"{folder}/{ROWS}") if path.endswith(".json")]


def _whole_lines(text: str) -> list[str]:
    """The lines of `text` without the last one if a kill left a part of it."""
    return text[: text.rfind("\n") + 1].splitlines()


class Journal:
    """Adds rows to the metrics of the run in `folder`."""

    def __init__(self, filesystem: fs.FileSystem, folder: str) -> None:
        self.filesystem, self.folder = filesystem, folder
        self._next: int | None = None  # number of the next object

    def add(self, row: Record) -> None:
        """Writes a row; it is there when this returns."""
        line = json.dumps(row) + "\n"
        if isinstance(self.filesystem, fs.LocalFileSystem):
            append_line(Path(self.folder) / METRICS, line)
            return
        if self._next is None:
            last = _row_objects(self.filesystem, self.folder)[-1:]
            self._next = int(Path(last[0]).stem) + 1 if last else 0
        write_text(self.filesystem, f"{self.folder}/{ROWS}/{self._next:09d}.json", line)
        self._next += 1

    def compact(self) -> list[Record]:
        """Writes the whole `metrics.jsonl` at the end of a stage, each row once; returns the rows."""
        rows = read_metrics(self.filesystem, self.folder)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = f"{self.folder}/{METRICS}"
        if (
            self.filesystem.get_file_info(path).type != fs.FileType.File
            or read_bytes(self.filesystem, path).decode() != text
        ):
            write_text(self.filesystem, path, text)
        if list_files(self.filesystem, f"{self.folder}/{ROWS}"):
            self.filesystem.delete_dir(f"{self.folder}/{ROWS}")
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


class Events:
    """TensorBoard events of the run in `folder`: a file for each row, named by its step, so none is twice.

    An object store cannot append. The end of a stage puts all rows into one file.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str) -> None:
        self.filesystem, self.folder = filesystem, folder
        self._completed = False

    def add(self, row: Record) -> None:
        """Writes the file of a new row; the first time, also those that an earlier process missed.

        A storage that fails for a moment must not end the run: the end of the stage has all rows.
        """
        with contextlib.suppress(OSError):
            if not self._completed:
                self.complete(read_metrics(self.filesystem, self.folder))
            self._completed = True
            self.write(row)

    def complete(self, rows: Sequence[Record]) -> None:
        """Writes the files of the `rows` that have none."""
        names = self._names()
        merged = max((step for name in names if (step := _merged_up_to(name)) is not None), default=-1)
        suffixes = [name.rpartition(".")[2] for name in names]
        there = {int(suffix) for suffix in suffixes if suffix.isdigit()}  # also of version 0.1.0
        for row in rows:
            if row["step"] > merged and row["step"] not in there:
                self.write(row)

    def write(self, row: Record) -> None:
        """Writes the file of a row, over an earlier one of the same step."""
        self._write([row], f"{EVENTS}.{int(row['step']):012d}")

    def merge(self, rows: Sequence[Record]) -> None:
        """Writes all `rows` of the run as one file, and removes the others."""
        if not rows:
            return
        whole, names = f"{EVENTS}.{int(rows[-1]['step']):012d}{MERGED}", self._names()
        if whole not in names:
            self._write(rows, whole)
        for name in names:
            if name != whole:
                self.filesystem.delete_file(f"{self.folder}/{name}")

    def _names(self) -> list[str]:
        names = [path.rpartition("/")[2] for path, _ in list_files(self.filesystem, self.folder)]
        return [name for name in names if name.startswith(EVENTS)]

    def _write(self, rows: Sequence[Record], name: str) -> None:
        from tensorboardX import SummaryWriter  # its import takes a moment

        folder = Path(tempfile.mkdtemp())
        try:
            with SummaryWriter(str(folder)) as writer:
                for row in rows:
                    for key, value in row.items():
                        if key not in ("images_seen", "step"):
                            writer.add_scalar(key, value, int(row["images_seen"]))
            (file,) = folder.iterdir()
            write_bytes(self.filesystem, f"{self.folder}/{name}", file.read_bytes())
        finally:
            shutil.rmtree(folder)


def _merged_up_to(name: str) -> int | None:
    """The last step in the merged file `name`; None if it is a file of another kind."""
    return int(name.removesuffix(MERGED).rpartition(".")[2]) if name.endswith(MERGED) else None
