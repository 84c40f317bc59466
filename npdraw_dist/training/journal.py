"""`metrics.jsonl` and TensorBoard events of a training run, written by Ray Train's controller."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.train import UserCallback

from npdraw_dist.core.storage import read_bytes, write_text

METRICS = "metrics.jsonl"


def read_journal(filesystem: pyarrow.fs.FileSystem, folder: str) -> list[dict[str, Any]]:
    """The records of `folder`/metrics.jsonl, oldest first; none where there is no file."""
    path = f"{folder}/{METRICS}"
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return []
    return [json.loads(line) for line in read_bytes(filesystem, path).decode().splitlines()]


class JournalCallback(UserCallback):
    """Appends each report; one that repeats after a resume replaces the old ones from there on."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, folder: str) -> None:
        self.filesystem, self.folder = filesystem, folder
        self.events: Path | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        record = metrics[0]
        records = [old for old in read_journal(self.filesystem, self.folder) if old["step"] < record["step"]]
        text = "".join(json.dumps(item) + "\n" for item in [*records, record])
        write_text(self.filesystem, f"{self.folder}/{METRICS}", text)
        self._tensorboard(record)

    def _tensorboard(self, record: dict[str, Any]) -> None:
        # Imported here: only the controller needs it, and it takes a second.
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(tempfile.mkdtemp())
        try:
            with SummaryWriter(str(folder), filename_suffix=f".{record['step']}") as writer:
                for key, value in record.items():
                    if key not in ("images_seen", "step"):
                        writer.add_scalar(key, value, record["images_seen"])
            for file in folder.iterdir():
                pyarrow.fs.copy_files(
                    str(file),
                    f"{self.folder}/{file.name}",
                    source_filesystem=pyarrow.fs.LocalFileSystem(),
                    destination_filesystem=self.filesystem,
                )
        finally:
            shutil.rmtree(folder)
