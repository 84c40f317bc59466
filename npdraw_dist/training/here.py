"""A stage's training in this process, without Ray: a debugger stops in it, and it starts at once.

Loop, checkpoints and metrics are those of a worker of Ray Train, and one can go on where the other stopped.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.lease import Lease
from npdraw_dist.core.storage import copy, display_path
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import PARTIAL, SHOW_EVERY_S, Display, LocalContext, Note, Resumed
from npdraw_dist.training.device import refuse_tf32
from npdraw_dist.training.events import Events, Pictures
from npdraw_dist.training.metrics_log import RECENT_ROWS, Journal, Record
from npdraw_dist.training.workers import device_here

Job = TypeVar("Job")
Result = TypeVar("Result")


class Kept(NamedTuple):
    """Which checkpoints stay: the `number` best by the criterion, and the last one."""

    number: int
    criterion: checkpoint.Criterion


class HereContext(LocalContext):
    """The only rank of a run in `folder` of any filesystem."""

    def __init__(
        self, filesystem: fs.FileSystem, folder: str, device: torch.device, kept: Kept, display: Display
    ) -> None:
        super().__init__(Path(folder) if isinstance(filesystem, fs.LocalFileSystem) else None, str(device))
        self.filesystem, self.run, self.kept, self.display = filesystem, folder, kept, display
        self.check: Callable[[], None] = lambda: None  # raises if this process may write no more
        self._journal, self._events = Journal(filesystem, folder), Events(filesystem, folder)
        self._recent = Journal(filesystem, folder, RECENT_ROWS)
        self._shown_at = 0.0

    def restore(self, load: Callable[[Path], checkpoint.Progress]) -> Resumed | None:
        paths = checkpoint.by_age(self.filesystem, self.run)
        try:
            found = checkpoint.first_readable(self.filesystem, self.run, paths, load)
        except checkpoint.FirstDamaged as error:
            self.say(f"damaged, not used: {error}; begins anew")
            return Resumed({}, error.generation)
        if found is None:
            return None
        for line in found.damaged:
            self.say(f"damaged, not used: {line}")
        self.say(f"resumes from {found.path.rpartition('/')[2]}")
        return Resumed.of(found.loaded, bool(found.damaged))

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.check()
        # The row first: a checkpoint whose row is missing would be trained on without it.
        self._journal.add(metrics)
        self._events.add(metrics)
        self.display.record(metrics)
        self.save(saved, name)

    def save(self, saved: Path | None, name: str, metric: str | None = None) -> None:
        assert saved is not None
        self.check()
        if self.folder is not None:
            super().save(saved, name)
        else:
            copy(fs.LocalFileSystem(), str(saved), self.filesystem, f"{self.run}/{name}")
        self._remove_others()

    def _remove_others(self) -> None:
        newest = checkpoint.by_age(self.filesystem, self.run)[:1]
        best = checkpoint.by_score(self.filesystem, self.run, self.kept.criterion)
        for path in best[self.kept.number :]:
            if path not in newest:
                self.filesystem.delete_dir(path)

    def say(self, line: str) -> None:
        self.display.say(line)

    def log(self, row: Record) -> None:
        self.check()
        self._recent.add(row)
        self.display.record(row)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        self._events.add_pictures(row, pictures)

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        if time.monotonic() - self._shown_at > SHOW_EVERY_S:
            self._shown_at = time.monotonic()
            self.display.show(images_seen, images_per_s, note())


def run_here(
    work: Callable[[Job, HereContext], Result],
    job: Job,
    filesystem: fs.FileSystem,
    folder: str,
    scale: ScaleConfig,
    kept: Kept,
    display: Display,
) -> Result:
    """`work(job, context)` of the run in `folder`, which is resumed if it exists.

    The random state of the caller stays as it is. Raises UserError if the device that scale.use_gpu asks for
    is not there, or if another process trains the same run.
    """
    context = HereContext(filesystem, folder, device_here(scale), kept, display)
    refuse_tf32(context.device)
    what = f"stage {display_path(filesystem, folder)}"
    devices = [torch.cuda.current_device()] if context.device.type == "cuda" else []
    with (
        Lease(filesystem, folder, what, wait_s=float(scale.timeout_s)) as held,
        torch.random.fork_rng(devices=devices),
    ):
        context.check = held.check
        if context.folder is not None:
            for partial in context.folder.glob(f"{PARTIAL}*"):  # of a process that was killed
                shutil.rmtree(partial)
        return work(job, context)
