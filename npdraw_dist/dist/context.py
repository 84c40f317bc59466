"""Where a training loop runs: in a Ray Train worker, or alone in a plain process.

The loop asks its context for rank, device, wrapping, reduction, the last checkpoint and reporting,
and never asks which of the two it has.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor, nn


class Context(Protocol):
    """One rank of a run."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on the device, its gradients averaged over ranks."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over ranks, on every rank."""

    def latest(self) -> Any:
        """A context manager: the folder of the last checkpoint, or None."""

    def report(self, metrics: dict[str, Any], checkpoint: Path | None, name: str) -> None:
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

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        found = sorted(self.folder.glob("checkpoint_*")) if self.folder else []
        yield found[-1] if found else None

    def report(self, metrics: dict[str, Any], checkpoint: Path | None, name: str) -> None:
        self.reports.append(metrics)
        if checkpoint is not None and self.folder is not None:
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(dir=self.folder))
            shutil.copytree(checkpoint, partial, dirs_exist_ok=True)
            partial.rename(target)


class RayContext:
    """A worker of a Ray Train (V2) run; DDP over gloo or NCCL where there are several."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        self._train, self._torch = ray.train, ray.train.torch
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

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        checkpoint = self._train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def report(self, metrics: dict[str, Any], checkpoint: Path | None, name: str) -> None:
        kept = None if checkpoint is None else self._train.Checkpoint.from_directory(checkpoint)
        self._train.report(metrics, checkpoint=kept, checkpoint_dir_name=name)
