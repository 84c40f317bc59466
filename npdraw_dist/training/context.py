"""Where a training loop runs: in a Ray Train worker, or alone in a plain process.

The loop asks its context for rank, device, wrapping, reduction, the last checkpoint and reporting. It does
not know which of the two it has.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed
from pyarrow import fs
from torch import Tensor, nn

from npdraw_dist.core.storage import local_copy
from npdraw_dist.training import checkpoint
from npdraw_dist.training.device import usable
from npdraw_dist.training.environment import PREEMPTION_WATCHER
from npdraw_dist.training.events import Events, Pictures
from npdraw_dist.training.metrics_log import RECENT_ROWS, Journal, Record

PARTIAL = ".checkpoint-"  # begins the name of a checkpoint that is being written
SHOW_EVERY_S = 0.5
SAVE_EVERY_S = 20.0  # while a node of the run is about to be taken away

BUCKETS = 4  # of gradients, averaged while the backward pass goes on
LEAST_BUCKET_MB, LARGEST_BUCKET_MB = 1.0, 25.0  # below, latency counts more; above is torch's default


class Resumed(NamedTuple):
    """The progress of the checkpoint that was loaded, {} of none, and the generation of the next ones.

    A checkpoint that replaces a damaged one takes another name, because Ray Train deletes by name.
    """

    progress: checkpoint.Progress
    generation: int

    @classmethod
    def of(cls, found: checkpoint.Progress, past_damage: bool) -> "Resumed":
        """past_damage: a newer checkpoint is damaged."""
        return cls(found, found["generation"] + past_damage)


Load = Callable[[Path], checkpoint.Progress]
Note = Callable[[], str]  # what progress shows beside the count, such as the loss; it may wait for a GPU


class Context(Protocol):
    """One rank of a run."""

    rank: int
    world_size: int
    device: torch.device
    began: float  # Unix time at which the command began the stage
    cpu_started: float  # CPU seconds of this process when the rank started in it

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on the device, its gradients averaged over ranks."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, on every rank."""

    def restore(self, load: Load) -> Resumed | None:
        """Calls `load(folder)` on the newest readable checkpoint; None if there are no checkpoints."""

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        """Publishes metrics, and a checkpoint folder (of rank 0) under `name`. Called by all ranks.

        The metrics are kept as soon as the checkpoint is.
        """

    def must_save(self) -> bool:
        """Whether to save at once, since a node of the run is about to be taken away; alike on all ranks."""

    def save(self, saved: Path | None, name: str, metric: str | None = None) -> None:
        """Publishes a checkpoint without metrics. Called by all ranks. metric: what compares the others."""

    def say(self, line: str) -> None:
        """Shows a line to the person who runs this, once for all ranks."""

    def log(self, row: Record) -> None:
        """Keeps a row of `training.jsonl`. Called by all ranks."""

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        """Keeps pictures of a validation, whose `step` and `images_seen` are in `row`. Called by rank 0."""

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        """Called after every step."""


class Display(Protocol):
    """What a person sees of a run, in the process of the driver."""

    def show(self, images_seen: int, images_per_s: float, note: str) -> None: ...

    def say(self, line: str) -> None: ...

    def record(self, row: Record) -> None:
        """A new row of `metrics.jsonl` or `training.jsonl`. After a restart, it can come once more."""


def ddp_settings(module: nn.Module) -> dict[str, Any]:
    """How DistributedDataParallel wraps a module whose ranks change no buffer, or all alike.

    Gradients travel in about BUCKETS buckets: by default those of a small model are one or two, which are
    full when the backward pass is done, so that nothing overlaps. Buffers are the bank, the same on all ranks
    from the start, or the use of codes, which each rank counts over all (`Objective.settle`). Not
    `static_graph`: it spares a search for unused parameters, which is off anyhow.
    """
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    size_mb = trained / BUCKETS / 2**20
    return {
        "bucket_cap_mb": min(max(size_mb, LEAST_BUCKET_MB), LARGEST_BUCKET_MB),
        "gradient_as_bucket_view": True,
        "broadcast_buffers": False,
    }


class LocalContext:
    """A plain process without Ray. Checkpoints and metrics go below `folder`; without one none are kept."""

    rank, world_size = 0, 1

    def __init__(self, folder: Path | None = None, device: str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self.began, self.cpu_started = time.time(), time.process_time()
        self.reports: list[dict[str, Any]] = []
        self.rows: list[Record] = []
        self.pictures: list[Pictures] = []

    def wrap(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def restore(self, load: Load) -> Resumed | None:
        if self.folder is None:
            return None
        local, run = fs.LocalFileSystem(), str(self.folder)
        try:
            found = checkpoint.first_readable(local, run, checkpoint.by_age(local, run), load)
        except checkpoint.FirstDamaged as error:
            return Resumed({}, error.generation)
        return None if found is None else Resumed.of(found.loaded, bool(found.damaged))

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.reports.append(metrics)
        if self.folder is not None:
            Journal(fs.LocalFileSystem(), str(self.folder)).add(metrics)
        self.save(saved, name)

    def must_save(self) -> bool:
        return False

    def save(self, saved: Path | None, name: str, metric: str | None = None) -> None:
        if saved is not None and self.folder is not None:
            target = self.folder / name
            partial = Path(tempfile.mkdtemp(dir=self.folder, prefix=PARTIAL))
            shutil.copytree(saved, partial, dirs_exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)

    def say(self, line: str) -> None:
        print(line)

    def log(self, row: Record) -> None:
        self.rows.append(row)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        self.pictures.append(pictures)

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        """Nothing is shown."""


class RayContext:
    """A worker of the Ray Train (V2) run in `folder`; DDP over gloo or NCCL if there are several.

    display: the actor that passes progress and lines to the driver. began: Unix time at
    which the command began the stage.
    """

    before_report: Callable[[], None] = staticmethod(lambda: None)  # raises if this worker may write no more

    def __init__(self, filesystem: fs.FileSystem, folder: str, display: Any, began: float) -> None:
        import ray.train
        import ray.train.collective
        import ray.train.torch

        self.filesystem, self.folder, self._display, self.began = filesystem, folder, display, began
        self._train, self._torch, self._collective = ray.train, ray.train.torch, ray.train.collective
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = usable(ray.train.torch.get_device())
        self.cpu_started = time.process_time()  # the process can have run tasks before
        self._journal, self._recent = Journal(filesystem, folder), Journal(filesystem, folder, RECENT_ROWS)
        self._shown_at = 0.0
        self._watched = os.environ.get(PREEMPTION_WATCHER) != "0"
        self._saved_at = -SAVE_EVERY_S

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

    def restore(self, load: Load) -> Resumed | None:
        # The storage is asked, not Ray Train's list of checkpoints, which can name a damaged one.
        found, anew = None, None
        if self.rank == 0:
            paths = checkpoint.by_age(self.filesystem, self.folder)
            try:
                found = checkpoint.first_readable(self.filesystem, self.folder, paths, load)
            except checkpoint.FirstDamaged as error:
                self.say(f"damaged, not used: {error}; begins anew")
                anew = error.generation
        path, damaged = found[1:] if found else (None, [])
        path, damaged, anew = self._collective.broadcast_from_rank_zero((path, damaged, anew))
        for line in damaged:
            self.say(f"damaged, not used: {line}")
        if path is None:
            return None if anew is None else Resumed({}, anew)
        self.say(f"resumes from {path.rpartition('/')[2]}")
        if found is not None:
            return Resumed.of(found.loaded, bool(damaged))
        with local_copy(self.filesystem, path) as folder:
            return Resumed.of(load(folder), bool(damaged))

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.before_report()
        # The row first: a checkpoint whose row is missing would be trained on without it.
        if self.rank == 0:
            self._journal.add(metrics)
            self._display.record.remote(metrics)
        self._publish(metrics, saved, name)

    def must_save(self) -> bool:
        if not self._watched:
            return False
        # Ray's watcher tells every worker of a drained node. Rank 0 decides, so that all save at one step.
        now = time.monotonic()
        due = self.rank == 0 and _told_of_preemption() and now - self._saved_at >= SAVE_EVERY_S
        if due:
            self._saved_at = now
        return bool(self.sum(torch.tensor(float(due))))

    def save(self, saved: Path | None, name: str, metric: str | None = None) -> None:
        self.before_report()
        # Where less is better, Ray Train takes a missing metric for the best one; NaN is always the worst.
        self._publish({} if metric is None else {metric: math.nan}, saved, name)

    def _publish(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        kept = None if saved is None else self._train.Checkpoint.from_directory(saved)
        self._train.report(metrics, checkpoint=kept, checkpoint_dir_name=name)

    def log(self, row: Record) -> None:
        self.before_report()
        if self.rank == 0:
            self._recent.add(row)
            self._display.record.remote(row)

    def add_pictures(self, row: Record, pictures: Pictures) -> None:
        Events(self.filesystem, self.folder).add_pictures(row, pictures)

    def show_progress(self, images_seen: int, images_per_s: float, note: Note) -> None:
        if self.rank == 0 and time.monotonic() - self._shown_at > SHOW_EVERY_S:
            self._shown_at = time.monotonic()
            self._display.show.remote(images_seen, images_per_s, note())

    def say(self, line: str) -> None:
        if self.rank == 0:
            self._display.say.remote(line)


def _told_of_preemption() -> bool:
    """Whether Ray has told this worker that a node of its run is being drained.

    `ray.train.get_preemption_info` says the same, but asks all ranks through an actor each time.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
