"""Where a training loop runs: alone in a plain process, or in a Ray Train worker. The loop need not know."""

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from pyarrow import fs
from torch import Tensor, nn

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.images import png
from npdraw_dist.core.lease import Lease
from npdraw_dist.core.process import refuse_tf32
from npdraw_dist.core.storage import copy, display_path, local_copy, write_bytes
from npdraw_dist.training import checkpoint
from npdraw_dist.training.checkpoint import KEPT, Criterion
from npdraw_dist.training.device import usable
from npdraw_dist.training.environment import PREEMPTION_WATCHER
from npdraw_dist.training.metrics_log import RECENT_ROWS, Events, Journal, Pictures, Record

PARTIAL = ".checkpoint-"  # begins the name of a checkpoint that is being written
SHOW_EVERY_S = 0.5
MOST_STEPS = 1000  # between two looks
LOOK_EVERY_S = 2.0  # for a notice that a node of the run is about to be taken away
SAVE_EVERY_S = 20.0  # after a notice

BUCKETS = 4  # groups of gradients, averaged while the backward pass goes on
LEAST_BUCKET_MB, LARGEST_BUCKET_MB = 1.0, 25.0  # below, latency counts more; above is torch's default

Job = TypeVar("Job")
Result = TypeVar("Result")
Note = Callable[[], str]  # what progress shows beside the count, such as the loss; it may wait for a GPU


class Display(Protocol):
    """What a person sees of a run, in the process of the driver."""

    def show(self, images_seen: int, images_per_s: float, note: str) -> None: ...

    def say(self, line: str) -> None: ...

    def record(self, row: Record) -> None:
        """Shows a new row of `metrics.jsonl` or `training.jsonl`. After a restart, it can come once more."""


class Context:
    """One rank of a run: here the only one, in a plain process, which keeps nothing."""

    rank, world_size = 0, 1
    removes_saved = False  # whether it removes the folder of a checkpoint, once that is kept

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.began = time.time()  # Unix time at which the command began the stage
        self.cpu_started = time.process_time()  # the process can have run tasks before

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on the device, its gradients averaged over ranks."""
        return module.to(self.device)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, on every rank."""
        return values

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        """Calls `load(folder)` on the newest readable checkpoint; None if there are no checkpoints."""
        return None

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        """Publishes metrics, and a checkpoint folder (of rank 0) under `name`. Called by all ranks."""

    def must_save(self) -> bool:
        """Whether to save at once, since a node of the run is about to be taken away; alike on all ranks."""
        return False

    def save(self, saved: Path | None, name: str) -> None:
        """Publishes a checkpoint without metrics. Called by all ranks."""

    def say(self, line: str) -> None:
        """Shows a line to the person who runs this, once for all ranks."""
        print(line)

    def log(self, row: Record) -> None:
        """Keeps a row of `training.jsonl`. Called by all ranks."""

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        """Keeps pictures of a validation, whose `step` and `images_seen` are in `row`. Called by rank 0."""

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        """Called after every step."""


class RunContext(Context):
    """A rank of the run in `folder` of any filesystem; rank 0 keeps its metrics there.

    Here the only one, in this process and without Ray: a debugger stops in it. criterion: of checkpoints.
    """

    check: Callable[[], None] = staticmethod(lambda: None)  # raises if this process may write no more

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
        # Events and row first: training that resumes from the checkpoint would lack them.
        if self.rank == 0:
            self.events.add(metrics)
            self.rows.add(metrics)
        self.publish(metrics, saved, name)
        if self.rank == 0:
            self.display.record(metrics)  # last: a callback may end the training

    def save(self, saved: Path | None, name: str) -> None:
        self.check()
        # Where less is better, Ray Train takes a missing metric for the best; NaN is the worst (`publish`).
        self.publish({self.criterion.name: math.nan}, saved, name, at_once=True)  # the node goes

    def log(self, row: Record) -> None:
        self.check()
        if self.rank == 0:
            self.events.add(row)
            self.recent.add(row)
            self.display.record(row)

    def resumed(self, found: checkpoint.Newest) -> None:
        """Training goes on from a checkpoint; rank 0 alone calls it."""
        for line in found.lines:
            self.say(line)
        images_seen = int(found.progress.get("record", {}).get("images_seen", 0))
        self.events = Events(self.filesystem, self.folder, images_seen)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        self.events.add_pictures(row, pictures)
        for name, picture in pictures.items():
            with contextlib.suppress(OSError):  # as of the events: no picture ends a run
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
        """Keeps the checkpoint folder `saved`, of rank 0; `at_once`: before training goes on."""
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
    """Copies the folder `saved` beside `target`, and gives it that name once it is whole."""
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=PARTIAL))
    shutil.copytree(saved, partial, dirs_exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def run_here(
    work: Callable[[Job, RunContext], Result], job: Job, context: RunContext, scale: ScaleConfig
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


def ddp_settings(module: nn.Module) -> dict[str, Any]:
    """DistributedDataParallel's. Buffers are alike on all ranks; gradients travel in some BUCKETS buckets."""
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    size_mb = trained / BUCKETS / 2**20
    return {
        "bucket_cap_mb": min(max(size_mb, LEAST_BUCKET_MB), LARGEST_BUCKET_MB),
        "gradient_as_bucket_view": True,
        "broadcast_buffers": False,
    }


class RayContext(RunContext):
    """A worker of the Ray Train (V2) run in `folder`. began: Unix time at which its stage began."""

    removes_saved = True  # training goes on while a checkpoint is uploaded

    def __init__(
        self, filesystem: fs.FileSystem, folder: str, criterion: Criterion, mailbox: Any, began: float
    ) -> None:
        import ray.train
        import ray.train.collective
        import ray.train.torch

        device = usable(ray.train.torch.get_device())
        show, say = mailbox.show.remote, mailbox.say.remote
        display: Any = SimpleNamespace(show=show, say=say, record=say)  # of the driver
        super().__init__(filesystem, folder, device, criterion, display)
        self.began = began
        self._train, self._torch, self._collective = ray.train, ray.train.torch, ray.train.collective
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._watched = os.environ.get(PREEMPTION_WATCHER) != "0"
        self._saved_at = -SAVE_EVERY_S
        self._steps, self._gap = 0, 1  # since the last look for a notice, and from it to the next
        self._looked_at = time.monotonic()

    def wrap(self, module: nn.Module) -> nn.Module:
        # Parameters that a stage does not train have requires_grad off, so DDP waits for none in vain.
        settings = ddp_settings(module)
        wrapped: nn.Module = self._torch.prepare_model(module, self.device, parallel_strategy_kwargs=settings)
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        # Rank 0 asks the storage, not Ray Train's list of checkpoints, which can name a damaged one.
        own = checkpoint.newest(self.filesystem, self.folder, load) if self.rank == 0 else None
        sent = own and own._replace(progress={})  # Ray warns of more than 1 kB
        found: checkpoint.Newest | None = self._collective.broadcast_from_rank_zero(sent)
        if own is not None:
            self.resumed(own)
            return own
        if found is None or found.path is None:
            return found
        with local_copy(self.filesystem, found.path) as folder:
            return found._replace(progress=load(folder))

    def must_save(self) -> bool:
        self._steps += 1
        if not self._watched or self._steps < self._gap:
            return False
        told = self._train.get_preemption_info()  # asks all ranks
        # Rank 0 decides, so that all save, and look again, at one step.
        now = time.monotonic()
        due = self.rank == 0 and told is not None and now - self._saved_at >= SAVE_EVERY_S
        if due:
            self._saved_at = now
            ranks = ", ".join(map(str, told.preempted_ranks))
            self.say(f"the node of rank {ranks} is about to be taken away; a checkpoint is saved")
        gap = 1 + int(self._steps * LOOK_EVERY_S / max(now - self._looked_at, 1e-3))
        found = torch.tensor([float(due), float(min(gap, MOST_STEPS))])
        due, gap = self.sum(found if self.rank == 0 else torch.zeros(2)).tolist()
        self._steps, self._gap, self._looked_at = 0, int(gap), now
        return bool(due)

    def publish(self, metrics: dict[str, Any], saved: Path | None, name: str, at_once: bool = False) -> None:
        """Uploads the checkpoint folder `saved`, beside training unless `at_once`."""
        name_of_score = self.criterion.name
        if not math.isfinite(metrics.get(name_of_score, 0.0)):
            metrics = {**metrics, name_of_score: self.criterion.worst}
        if saved is None:
            self._train.report(metrics, checkpoint_dir_name=name)
            return
        # `report` waits for the upload before it, and the end of the worker for all.
        modes, kept = self._train.CheckpointUploadMode, self._train.Checkpoint.from_directory(saved)
        self._train.report(
            metrics,
            checkpoint=kept,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=modes.SYNC if at_once else modes.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
