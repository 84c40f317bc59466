"""TensorBoard's events of a training run: rows of metrics, pictures, settings. Shapes: C channels, H x W."""

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pyarrow import fs
from torch import Tensor

from npdraw_dist.core.storage import list_files, read_bytes, write_bytes
from npdraw_dist.training.metrics_log import Record, read_metrics

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

EVENTS = "events.out.tfevents"  # TensorBoard reads files with this in their names, in the order of the names
# At the end of the name of a file: with a row of `training.jsonl`, with pictures, with what holds for the
# whole stage, with all up to its step.
BETWEEN, PICTURES, BEGIN, MERGED = ".between", ".pictures", ".begin", ".merged"
OTHER_THAN_ROWS = {"text", "hparams", "images"}  # plugins of TensorBoard

Pictures = Mapping[str, Tensor]  # name -> (C, H, W) in [0, 1]
Setting = bool | int | float | str


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
        self._write(f"{EVENTS}.{int(row['step']):012d}", _rows([row]))

    def add_between(self, row: Record) -> None:
        """Writes the file of a row of `training.jsonl`. A failing storage leaves it to the stage's end."""
        with contextlib.suppress(OSError):
            name = f"{EVENTS}.{int(row['step']):012d}{BETWEEN}"
            self._write(name, _rows([row]))

    def begin(self, settings: Mapping[str, Setting], metric: str, pictures: Pictures) -> None:
        """Writes what holds for the whole stage: its settings, for the tabs HPARAMS and TEXT, and pictures.

        metric: which one HPARAMS compares by.
        """
        with contextlib.suppress(OSError):
            content = _settings(settings, metric) + _pictures(pictures, 0)
            self._write(f"{EVENTS}.{0:012d}{BEGIN}", content)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        """Writes the file of the pictures of a validation. One that a failing storage loses is lost."""
        with contextlib.suppress(OSError):
            name = f"{EVENTS}.{int(row['step']):012d}{PICTURES}"
            self._write(name, _pictures(pictures, int(row["images_seen"])))

    def merge(self, rows: Sequence[Record]) -> None:
        """Writes all `rows` of the run, those between validations too, as one file; removes the others.

        It also has all pictures and settings so far.
        """
        if not rows:
            return
        whole, names = f"{EVENTS}.{int(rows[-1]['step']):012d}{MERGED}", self._names()
        if whole not in names:
            others = [name for name in names if name.endswith((BEGIN, PICTURES, MERGED))]
            kept = [_without_rows(read_bytes(self.filesystem, f"{self.folder}/{name}")) for name in others]
            self._write(whole, _rows(rows) + b"".join(kept))
        for name in names:
            if name != whole:
                self.filesystem.delete_file(f"{self.folder}/{name}")

    def _names(self) -> list[str]:
        names = [path.rpartition("/")[2] for path, _ in list_files(self.filesystem, self.folder)]
        return [name for name in names if name.startswith(EVENTS)]

    def _write(self, name: str, content: bytes) -> None:
        from tensorboardX.proto.event_pb2 import Event

        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        write_bytes(self.filesystem, f"{self.folder}/{name}", _record(version.SerializeToString()) + content)


# The events are made in memory: tensorboardX's writer needs a file and a thread for each, and after a full
# disk it tries again when the process ends, with a traceback.


def _rows(rows: Sequence[Record]) -> bytes:
    from tensorboardX.summary import scalar

    def found() -> Iterator[tuple["Summary", int]]:
        for row in rows:
            for key, value in row.items():
                if key not in ("images_seen", "step"):
                    yield scalar(key, value), int(row["images_seen"])

    return _records(found())


def _pictures(pictures: Pictures, images_seen: int) -> bytes:
    from tensorboardX.summary import image

    return _records((image(name, picture), images_seen) for name, picture in pictures.items())


def _settings(settings: Mapping[str, Setting], metric: str) -> bytes:
    from tensorboardX.summary import hparams, text

    lines = "\n".join(f"    {name}: {value}" for name, value in settings.items())
    summaries = [text("settings", lines), *hparams(dict(settings), {metric: 0.0})]
    return _records((summary, 0) for summary in summaries)


def _records(summaries: Iterator[tuple["Summary", int]]) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    events = (Event(wall_time=time.time(), step=step, summary=summary) for summary, step in summaries)
    return b"".join(_record(event.SerializeToString()) for event in events)


def _record(event: bytes) -> bytes:
    """Its length (8 bytes), a checksum (4), the event, a checksum (4): TensorFlow's TFRecord."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(event))
    checksums = [struct.pack("<I", masked_crc32c(content)) for content in (length, event)]
    return length + checksums[0] + event + checksums[1]


def _without_rows(content: bytes) -> bytes:
    """The records of a file of events that hold pictures or settings. A file is a sequence of `_record`s."""
    from tensorboardX.proto.event_pb2 import Event

    kept, start = [], 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + length + 16
        values = Event.FromString(content[start + 12 : end - 4]).summary.value
        plugins = {value.metadata.plugin_data.plugin_name for value in values}
        if plugins & OTHER_THAN_ROWS or any(value.HasField("image") for value in values):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _merged_up_to(name: str) -> int | None:
    """The last step in the merged file `name`; None if it is a file of another kind."""
    return int(name.removesuffix(MERGED).rpartition(".")[2]) if name.endswith(MERGED) else None
