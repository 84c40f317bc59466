"""Writes the metrics of a training run: `metrics.jsonl` with a row per validation, and TensorBoard events.

`training.jsonl` has the training metrics between validations. A new row replaces all rows of its step and
later steps, since resumed training repeats these steps. Shapes: C channels, H x W pictures.
"""

import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyarrow import fs
from torch import Tensor

from npdraw_dist.system.storage import list_files, read_bytes, write_bytes, write_text

ROWS, RECENT_ROWS = "metrics", "training"  # names of the files NAME.jsonl
RECENT = "recent"  # prefix of means over the images since the previous row in `training.jsonl`
Record = dict[str, float]  # metric -> value at one validation; also `images_seen` and `step`
EVENTS = "events.out.tfevents"  # prefix of the files that TensorBoard reads, in the order of their names
LARGEST = 1 << 18  # bytes after which a new file begins in an object store, where each row rewrites the file

Pictures = Mapping[str, Tensor]  # name -> (C, H, W) in [0, 1]
Setting = bool | int | float | str


def read_metrics(filesystem: fs.FileSystem, folder: str, rows: str = ROWS) -> list[Record]:
    """The rows of the file `rows`.jsonl in `folder`, oldest first; [] if there is no such file."""
    path = f"{folder}/{rows}.jsonl"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return []
    return [json.loads(line) for line in read_bytes(filesystem, path).decode().splitlines()]


class Journal:
    """Adds rows to NAME.jsonl in `folder`. Each row rewrites the file, so a kill leaves no partial row."""

    def __init__(self, filesystem: fs.FileSystem, folder: str, rows: str = ROWS) -> None:
        self.filesystem, self.folder, self.name = filesystem, folder, rows
        self._rows: list[Record] | None = None

    def add(self, row: Record) -> None:
        """Writes a row to the file before returning."""
        if self._rows is None:
            self._rows = read_metrics(self.filesystem, self.folder, self.name)
        self._rows = [*(one for one in self._rows if one["step"] < row["step"]), row]
        text = "".join(json.dumps(one) + "\n" for one in self._rows)
        write_text(self.filesystem, f"{self.folder}/{self.name}.jsonl", text)


class Events:
    """Adds TensorBoard events to the run in `folder`. Each start of training writes its own files.

    images_seen: images before this start; TensorBoard hides events of earlier starts with more images. Events
    are built in memory, so that a storage failure does not end the run; they are then written with the next
    event. TensorBoard's `SummaryWriter` is not used, since it prints a traceback at exit after a failure.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, images_seen: int = 0) -> None:
        self.filesystem, self.folder, self.images_seen = filesystem, folder, images_seen
        self._local = isinstance(filesystem, fs.LocalFileSystem)
        self._made = io.BytesIO()
        self._written, self._path = 0, ""

    def add(self, row: Record) -> None:
        """Adds the metrics of a row."""
        from tensorboardX.summary import scalar

        values = {key: value for key, value in row.items() if key not in ("images_seen", "step")}
        self._add((scalar(key, value) for key, value in values.items()), int(row["images_seen"]))

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        """Adds pictures of the validation `row`."""
        from tensorboardX.summary import image

        self._add((image(name, picture) for name, picture in pictures.items()), int(row["images_seen"]))

    def _add(self, summaries: Iterator[Any], images_seen: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        size = self._made.tell()
        # A new file begins only after the object store has received all of the previous one.
        if not self._path or (size > LARGEST and size == self._written and not self._local):
            names = (path.rpartition("/")[2] for path, _ in list_files(self.filesystem, self.folder))
            self._begin(sum(name.startswith(EVENTS) for name in names) + 1)
        for summary in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=images_seen, summary=summary))
        self._write()

    def _begin(self, number: int) -> None:
        """Begins a file. The first file of a start states the image from which it replaces earlier events."""
        from tensorboardX import record_writer
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        first, self._made, self._written = not self._path, io.BytesIO(), 0
        record_writer.register_writer_factory("memory", SimpleNamespace(open=lambda path: self._made))
        self._writer = EventsWriter("memory:")
        self._path = f"{self.folder}/{EVENTS}.{number:06d}"
        if first and number:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=self.images_seen + 1, session_log=start))

    def _write(self) -> None:
        """Appends new events to a local file, or rewrites an object, since object stores cannot append."""
        content = self._made.getvalue()
        try:
            if self._local:
                Path(self.folder).mkdir(parents=True, exist_ok=True)
                with open(self._path, "r+b" if self._written else "wb") as file:
                    file.seek(self._written)
                    file.write(content[self._written :])
            else:
                write_bytes(self.filesystem, self._path, content)
        except OSError:
            return
        self._written = len(content)

    def begin(self, settings: Mapping[str, Setting], metric: str, pictures: Pictures) -> None:
        """Writes pictures, and settings for the tabs TEXT and HPARAMS; HPARAMS compares runs by `metric`."""
        from tensorboardX.summary import hparams, image, text

        self._begin(0)  # a stage has one such file, before all others
        lines = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        shown = [image(name, picture) for name, picture in pictures.items()]
        self._add(iter([text("settings", lines), *hparams(dict(settings), {metric: 0.0}), *shown]), 0)
