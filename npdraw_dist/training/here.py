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
from npdraw_dist.training.context import Display, RunContext
from npdraw_dist.training.device import refuse_tf32

PARTIAL = ".checkpoint-"  # begins the name of a checkpoint that is being written

Job = TypeVar("Job")
Result = TypeVar("Result")


class HereContext(RunContext):
    """The only rank of a run in `folder` of any filesystem."""

    def __init__(
        self, filesystem: fs.FileSystem, folder: str, device: torch.device, kept: Kept, display: Display
    ) -> None:
        super().__init__(device, filesystem, folder, display)
        self.kept = kept

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        found = checkpoint.newest(self.filesystem, self.folder, load)
        if found is not None:
            self.resumed(found)
        return found

    def publish(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        assert saved is not None
        if isinstance(self.filesystem, fs.LocalFileSystem):
            move_in(saved, Path(self.folder) / name)
        else:
            copy(fs.LocalFileSystem(), str(saved), self.filesystem, f"{self.folder}/{name}")
        newest = checkpoint.by_age(self.filesystem, self.folder)[:1]
        best = checkpoint.by_score(self.filesystem, self.folder, self.kept.criterion)
        for path in best[self.kept.number :]:
            if path not in newest:
                self.filesystem.delete_dir(path)


def move_in(saved: Path, target: Path) -> None:
    """Copies the folder `saved` beside `target`, and gives it that name once it is whole."""
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=PARTIAL))
    shutil.copytree(saved, partial, dirs_exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def run_here(
    work: Callable[[Job, HereContext], Result], job: Job, context: HereContext, scale: ScaleConfig
) -> Result:
    """`work(job, context)`; the caller's random state stays. Raises UserError if another trains the run."""
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
