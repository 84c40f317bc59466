"""Where a training loop runs: in a Ray Train worker, or alone in a plain process.

The loop asks its context for rank, device, wrapping, reduction, the last checkpoint and reporting,
and never asks which of the two it has.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from pyarrow import fs
from torch import Tensor, nn

from npdraw_dist.core.storage import local_copy
from npdraw_dist.training import checkpoint

Loaded = TypeVar("Loaded")


class Context(Protocol):
    """One rank of a run."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on the device, its gradients averaged over ranks."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, on every rank."""

    def restore(self, load: Callable[[Path], Loaded]) -> tuple[Loaded, bool] | None:
        """`load(folder)` of the newest whole checkpoint and whether a newer one is damaged; None if none."""

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        """Publishes metrics, and a checkpoint folder (of rank 0) under `name`. Called by all ranks."""


class LocalContext:
    """A plain process: no Ray. Checkpoints go below `folder`, or nowhere."""

    rank, world_size = 0, 1

    def __init__(self, folder: Path | None = None, device: str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self.reports: list[dict[str, Any]] = []

    def wrap(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def restore(self, load: Callable[[Path], Loaded]) -> tuple[Loaded, bool] | None:
        if self.folder is None:
            return None
        found = checkpoint.newest(fs.LocalFileSystem(), str(self.folder), load)
        return None if found is None else (found[0], bool(found[2]))

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        self.reports.append(metrics)
        if saved is not None and self.folder is not None:
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(dir=self.folder))
            shutil.copytree(saved, partial, dirs_exist_ok=True)
            partial.rename(target)


class RayContext:
    """A worker of the Ray Train (V2) run in `folder`; DDP over gloo or NCCL where there are several.

    board: the actor that takes what the driver shows.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, board: Any) -> None:
        import ray.train
        import ray.train.collective
        import ray.train.torch

        self.filesystem, self.folder, self.board = filesystem, folder, board
        self._train, self._torch, self._collective = ray.train, ray.train.torch, ray.train.collective
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def wrap(self, module: nn.Module) -> nn.Module:
        # Parameters that a stage does not train have requires_grad off, so none goes unused.
        return self._torch.prepare_model(module, parallel_strategy_kwargs={"gradient_as_bucket_view": True})

    def sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values

    def restore(self, load: Callable[[Path], Loaded]) -> tuple[Loaded, bool] | None:
        # The storage is asked, not Ray Train's list of checkpoints, which can name a damaged one.
        found = checkpoint.newest(self.filesystem, self.folder, load) if self.rank == 0 else None
        path, damaged = self._collective.broadcast_from_rank_zero(found[1:] if found else (None, []))
        for line in damaged:
            self.say(f"damaged, left aside: {line}")
        if path is None:
            return None
        self.say(f"goes on from {path.rpartition('/')[2]}")
        if found is not None:
            return found[0], bool(damaged)
        with local_copy(self.filesystem, path) as folder:
            return load(folder), bool(damaged)

    def report(self, metrics: dict[str, Any], saved: Path | None, name: str) -> None:
        kept = None if saved is None else self._train.Checkpoint.from_directory(saved)
        self._train.report(metrics, checkpoint=kept, checkpoint_dir_name=name)

    def say(self, line: str) -> None:
        """Has the driver print a line, once for all ranks."""
        if self.rank == 0:
            self.board.say.remote(line)
