"""The environment of a training loop (`Context`) in one process. `distributed.context` defines it for Ray."""

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pyarrow import fs
from torch import Tensor, nn

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.images import png
from npdraw_dist.system.lease import Lease
from npdraw_dist.system.storage import copy, display_path, write_bytes
from npdraw_dist.training import checkpoint
from npdraw_dist.training.checkpoint import KEPT, Criterion
from npdraw_dist.training.metrics_log import RECENT_ROWS, Events, Journal, Pictures, Record

PARTIAL = ".checkpoint-"  # prefix of a checkpoint that is being written
SHOW_EVERY_S = 0.5

Job = TypeVar("Job")
Result = TypeVar("Result")
Note = Callable[[], str]  # returns a text to show next to the progress, such as the loss; may wait for a GPU


class Resized(Exception):
    """The workers end after a checkpoint, so that another number of workers starts from it."""


class Display(Protocol):
    """Shows a run to a person, in the driver's process."""

    def show(self, images_seen: int, images_per_s: float, note: str) -> None: ...

    def say(self, line: str) -> None: ...

    def record(self, row: Record) -> None:
        """Shows a new row of `metrics.jsonl` or `training.jsonl`. A restart can repeat a row."""


class Context:
    """The environment of a run's only rank, without Ray. This class saves nothing; its subclasses do."""

    rank, world_size = 0, 1
    gpu_share = 1.0  # share of the GPU that this rank has
    removes_saved = False  # whether `report` and `save` remove the local folder of a checkpoint

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.began = time.time()  # Unix time at which the command began the stage
        self.cpu_started = time.process_time()  # CPU seconds; not 0 if this process ran other tasks before

    def wrap(self, module: nn.Module) -> nn.Module:
        """Moves `module` to the device and lets ranks average its gradients."""
        return module.to(self.device)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, on every rank."""
        return values

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        """Calls `load(folder)` on the newest readable checkpoint; None if there are no checkpoints."""
        return None

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        """Publishes metrics, and the checkpoint folder of rank 0 under `name`. Called by all ranks."""

    def must_save(self) -> bool:
        """Whether to save at once because the cloud takes back a node; the same answer on all ranks."""
        return False

    def save(self, saved: Path | None, name: str) -> None:
        """Publishes a checkpoint without metrics. Called by all ranks."""

    def check_size(self) -> None:
        """Raises Resized, on all ranks, if more workers should start. Called after a checkpoint."""

    def say(self, line: str) -> None:
        """Shows a line to the user, once for all ranks."""
        print(line)

    def log(self, row: Record) -> None:
        """Adds a row to `training.jsonl`. Called by all ranks."""

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        """Saves pictures of a validation; `row` has its `step` and `images_seen`. Called by rank 0."""

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        """Shows the progress. Called after every step."""


class RunContext(Context):
    """A rank of the run in `folder`, on any filesystem. Rank 0 writes the metrics to this folder.

    This class itself is for a run of one rank without Ray, in which a debugger can stop; `RayContext` is for
    Ray. criterion: the metric that ranks checkpoints.
    """

    check: Callable[[], None] = staticmethod(lambda: None)  # raises if another process owns the run

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        device: torch.device,
        criterion: Criterion,
        display: Display,
    ) -> None:
        super().__init__(device)
        self.filesystem, self.folder, self.display = filesystem, folder, display
        self.criterion, self.shown_at = criterion, 0.0
        self.rows, self.recent = Journal(filesystem, folder), Journal(filesystem, folder, RECENT_ROWS)
        self.events = Events(filesystem, folder)

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.check()
        # Events and row are written first, since a run resumed from the checkpoint does not write them again.
        if self.rank == 0:
            self.events.add(metrics)
            self.rows.add(metrics)
        self.publish(metrics, saved, name)
        if self.rank == 0:
            self.display.record(metrics)  # last, since a user's callback may end the training

    def save(self, saved: Path | None, name: str) -> None:
        self.check()
        # If lower is better, Ray Train ranks a missing metric best; `RayContext.publish` ranks NaN worst.
        self.publish({self.criterion.name: math.nan}, saved, name, at_once=True)  # the node is preempted

    def log(self, row: Record) -> None:
        self.check()
        if self.rank == 0:
            self.events.add(row)
            self.recent.add(row)
            self.display.record(row)

    def resumed(self, found: checkpoint.Newest) -> None:
        """Reports that training resumes from a checkpoint, and starts new event files. Called by rank 0."""
        for line in found.lines:
            self.say(line)
        images_seen = int(found.progress.get("record", {}).get("images_seen", 0))
        self.events = Events(self.filesystem, self.folder, images_seen)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        self.events.add_pictures(row, pictures)
        for name, picture in pictures.items():
            with contextlib.suppress(OSError):  # a missing picture does not end a run
                write_bytes(self.filesystem, f"{self.folder}/{name}.png", png(picture))

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        if self.rank == 0 and time.monotonic() - self.shown_at > SHOW_EVERY_S:
            self.shown_at = time.monotonic()
            self.display.show(images_seen, images_per_s, note())

    def say(self, line: str) -> None:
        if self.rank == 0:
            self.display.say(line)

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        found = checkpoint.newest(self.filesystem, self.folder, load)
        if found is not None:
            self.resumed(found)
        return found

    def publish(self, metrics: dict[str, Any], saved: Path | None, name: str, at_once: bool = False) -> None:
        """Stores the folder `saved`, then deletes all checkpoints but the KEPT best and the newest."""
        assert saved is not None
        if isinstance(self.filesystem, fs.LocalFileSystem):
            move_in(saved, Path(self.folder) / name)
        else:
            copy(fs.LocalFileSystem(), str(saved), self.filesystem, f"{self.folder}/{name}")
        newest = checkpoint.by_age(self.filesystem, self.folder)[:1]
        best = checkpoint.by_score(self.filesystem, self.folder, self.criterion)
        for path in best[KEPT:]:
            if path not in newest:
                self.filesystem.delete_dir(path)


def move_in(saved: Path, target: Path) -> None:
    """Copies the folder `saved` next to `target`, then renames the complete copy to `target`."""
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=PARTIAL))
    shutil.copytree(saved, partial, dirs_exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def run_in_process(
    work: Callable[[Job, RunContext], Result], job: Job, context: RunContext, scale: ScaleConfig
) -> Result:
    """Runs `work(job, context)` and restores the caller's random state.

    Raises UserError if another process trains the run.
    """
    what = f"stage {display_path(context.filesystem, context.folder)}"
    devices = [torch.cuda.current_device()] if context.device.type == "cuda" else []
    with (
        Lease(context.filesystem, context.folder, what, wait_s=float(scale.timeout_s)) as lease,
        torch.random.fork_rng(devices=devices),
    ):
        context.check = lease.check
        if isinstance(context.filesystem, fs.LocalFileSystem):
            for partial in Path(context.folder).glob(f"{PARTIAL}*"):  # left by a killed process
                shutil.rmtree(partial)
        return work(job, context)
