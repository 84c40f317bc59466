"""The metrics of a training run, as `metrics.jsonl` and TensorBoard events, written by Ray Train."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pyarrow import fs
from ray.train import UserCallback

from npdraw_dist.core.storage import copy, read_bytes, write_text

METRICS = "metrics.jsonl"
Record = dict[str, float]  # metric -> value at one validation; also `images_seen` and `step`


def read_metrics(filesystem: fs.FileSystem, folder: str) -> list[Record]:
    """The records of `folder`/metrics.jsonl, oldest first; [] if there is no file."""
    path = f"{folder}/{METRICS}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return []
    return [json.loads(line) for line in read_bytes(filesystem, path).decode().splitlines()]


class MetricsLog(UserCallback):  # type: ignore[misc]
    """Adds each report. A report that is repeated after a resume replaces the old ones from its step on."""

    def __init__(self, filesystem: fs.FileSystem, folder: str) -> None:
        self.filesystem, self.folder = filesystem, folder

    def after_report(self, run_context: Any, metrics: list[Record], checkpoint: Any) -> None:
        record = metrics[0]
        earlier = [old for old in read_metrics(self.filesystem, self.folder) if old["step"] < record["step"]]
        text = "".join(json.dumps(item) + "\n" for item in [*earlier, record])
        write_text(self.filesystem, f"{self.folder}/{METRICS}", text)
        self._write_events(record)

    def _write_events(self, record: Record) -> None:
        # Only the controller needs TensorBoard, and its import takes a second.
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(tempfile.mkdtemp())
        try:
            with SummaryWriter(str(folder), filename_suffix=f".{record['step']}") as writer:
                for key, value in record.items():
                    if key not in ("images_seen", "step"):
                        writer.add_scalar(key, value, int(record["images_seen"]))
            for file in folder.iterdir():
                copy(fs.LocalFileSystem(), str(file), self.filesystem, f"{self.folder}/{file.name}")
        finally:
            shutil.rmtree(folder)
