"""A stage's training in this process, without Ray: a debugger stops in it, and it starts at once.

Loop, checkpoints and metrics are those of a worker of Ray Train, and one can go on where the other stopped.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.lease import Lease
from npdraw_dist.core.storage import copy, display_path
from npdraw_dist.training import checkpoint
from npdraw_dist.training.checkpoint import Kept
from npdraw_dist.training.context import Context, Display, MetricsLog
from npdraw_dist.training.device import refuse_tf32
from npdraw_dist.training.events import Pictures
from npdraw_dist.training.metrics_log import Record

PARTIAL = ".checkpoint-"  # begins the name of a checkpoint that is being written

Job = TypeVar("Job")
Result = TypeVar("Result")


class HereContext(Context):
    """The only rank of a run in `folder` of any filesystem."""

    check: Callable[[], None] = staticmethod(lambda: None)  # raises if this process may write no more

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        device: torch.device,
        kept: Kept,
        display: Display,
    ) -> None:
        super().__init__(str(device))
        self.filesystem, self.folder, self.kept, self.display = filesystem, folder, kept, display
        self.metrics = MetricsLog(filesystem, folder)

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        found = checkpoint.newest(self.filesystem, self.folder, load)
        if found is not None:
            for line in found.lines:
                self.say(line)
            self.metrics.resume(found.images_seen)
        return found

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.check()
        # The row first: a checkpoint whose row is missing would be trained on without it.
        self.metrics.add(metrics)
        self.display.record(metrics)
        self.save(saved, name)

    def save(self, saved: Path | None, name: str, metric: str | None = None) -> None:
        assert saved is not None
        self.check()
        if isinstance(self.filesystem, fs.LocalFileSystem):
            move_in(saved, Path(self.folder) / name)
        else:
            copy(fs.LocalFileSystem(), str(saved), self.filesystem, f"{self.folder}/{name}")
        self._remove_others()

    def _remove_others(self) -> None:
        newest = checkpoint.by_age(self.filesystem, self.folder)[:1]
        best = checkpoint.by_score(self.filesystem, self.folder, self.kept.criterion)
        for path in best[self.kept.number :]:
            if path not in newest:
                self.filesystem.delete_dir(path)

    def say(self, line: str) -> None:
        self.display.say(line)

    def log(self, row: Record) -> None:
        self.check()
        self.metrics.add_between(row)
        self.display.record(row)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        self.metrics.events.add_pictures(row, pictures)

    def show(self, images_seen: int, images_per_s: float, note: str) -> None:
        self.display.show(images_seen, images_per_s, note)


def move_in(saved: Path, target: Path) -> None:
    """Copies the folder `saved` beside `target`, and gives it that name once it is whole."""
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=PARTIAL))
    shutil.copytree(saved, partial, dirs_exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def run_here(
    work: Callable[[Job, HereContext], Result], job: Job, context: HereContext, scale: ScaleConfig
) -> Result:
    """`work(job, context)` of the run of the context, which is resumed if it exists.

    The random state of the caller stays as it is. Raises UserError if another process trains the same run.
    """
    refuse_tf32(context.device)
    what = f"stage {display_path(context.filesystem, context.folder)}"
    devices = [torch.cuda.current_device()] if context.device.type == "cuda" else []
    with (
        Lease(context.filesystem, context.folder, what, wait_s=float(scale.timeout_s)) as held,
        torch.random.fork_rng(devices=devices),
    ):
        context.check = held.check
        if isinstance(context.filesystem, fs.LocalFileSystem):
            for partial in Path(context.folder).glob(f"{PARTIAL}*"):  # left by a killed process
                shutil.rmtree(partial)
        return work(job, context)
