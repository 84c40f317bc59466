"""A display and a context of a training for tests."""

from pathlib import Path
from typing import Any

from pyarrow import fs

from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import Context, move_in
from npdraw_dist.training.metrics_log import Journal


class Silent:
    """In place of the display of a stage."""

    def say(self, line: str) -> None: ...
    def record(self, row: Any) -> None: ...
    def show(self, images_seen: int, images_per_s: float, note: str) -> None: ...


class LocalContext(Context):
    """Lists the reports. Checkpoints and metrics go below `folder`; without a folder none are kept."""

    def __init__(self, folder: Path | None = None, device: str = "cpu") -> None:
        super().__init__(device)
        self.folder = folder
        if folder is not None:
            folder.mkdir(exist_ok=True)
        self.reports: list[dict[str, Any]] = []

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        if self.folder is None:
            return None
        return checkpoint.newest(fs.LocalFileSystem(), str(self.folder), load)

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.reports.append(metrics)
        if self.folder is not None:
            Journal(fs.LocalFileSystem(), str(self.folder)).add(metrics)
        self.save(saved, name)

    def save(self, saved: Path | None, name: str) -> None:
        if saved is not None and self.folder is not None:
            move_in(saved, self.folder / name)
