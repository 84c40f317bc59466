"""The metrics of a training run, a row a validation: as `metrics.jsonl`, and TensorBoard's events.

Between validations, `training.jsonl` has rows of the loss alone. A row replaces those from its step on, which
training repeats. Shapes: C channels, H x W pictures.
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

from npdraw_dist.core.storage import list_files, read_bytes, write_bytes, write_text

ROWS, RECENT_ROWS = "metrics", "training"  # the file NAME.jsonl
RECENT = "recent"  # begins the names of means over the images since the row before in `training.jsonl`
Record = dict[str, float]  # metric -> value at one validation; also `images_seen` and `step`
EVENTS = "events.out.tfevents"  # TensorBoard reads files with this in their names, in the order of the names
LARGEST = 1 << 18  # bytes of a file in an object store, which is written anew with each row

Pictures = Mapping[str, Tensor]  # name -> (C, H, W) in [0, 1]
Setting = bool | int | float | str


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


class Events:
    """Adds events to the run in `folder`: a start of the training writes a file of its own, or several.

    images_seen: at this start; TensorBoard then hides events of later images. They are made in memory: a
    failing storage, which `SummaryWriter` answers with a traceback at exit, must not end the run, and gets
    with the next event what it did not take.
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
        # What an object store has not taken yet goes with the next event, in the same file.
        if not self._path or (size > LARGEST and size == self._written and not self._local):
            names = (path.rpartition("/")[2] for path, _ in list_files(self.filesystem, self.folder))
            self._begin(sum(name.startswith(EVENTS) for name in names) + 1)
        for summary in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=images_seen, summary=summary))
        self._write()

    def _begin(self, number: int) -> None:
        """Begins a file. The first one of a start says from where on it replaces earlier ones."""
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
        """Writes what is new to the storage: at the end of a local file; an object cannot be appended to."""
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
        """Writes a stage's settings, for HPARAMS (which compares by `metric`) and TEXT, and pictures."""
        from tensorboardX.summary import hparams, image, text

        self._begin(0)  # once for a stage, before all others
        lines = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        shown = [image(name, picture) for name, picture in pictures.items()]
        self._add(iter([text("settings", lines), *hparams(dict(settings), {metric: 0.0}), *shown]), 0)
