"""The environment of a training loop (`RayContext`) in a worker of Ray Train."""

import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from pyarrow import fs
from torch import Tensor, nn

from npdraw_dist.distributed.start import PREEMPTION_WATCHER
from npdraw_dist.system.storage import local_copy
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import Resized, RunContext
from npdraw_dist.training.device import usable

LOOK_EVERY_S = 2.0  # how often ranks look for a notice that the cloud takes back a node of the run
MOST_STEPS = 1000  # largest number of steps between two looks for a notice
SAVE_EVERY_S = 20.0  # minimum seconds between two checkpoints after a notice

BUCKETS = 4  # groups of gradients that ranks average during the backward pass
LEAST_BUCKET_MB, LARGEST_BUCKET_MB = (
    1.0,
    25.0,
)  # smaller buckets are slow because of latency; the largest size is torch's default


def ddp_settings(module: nn.Module) -> dict[str, Any]:
    """Settings of DistributedDataParallel: about BUCKETS buckets, no broadcast of buffers (all are equal)."""
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    size_mb = trained / BUCKETS / 2**20
    return {
        "bucket_cap_mb": min(max(size_mb, LEAST_BUCKET_MB), LARGEST_BUCKET_MB),
        "gradient_as_bucket_view": True,
        "broadcast_buffers": False,
    }


class RayContext(RunContext):
    """A worker of the Ray Train (V2) run in `folder`. began: Unix time at which the stage began."""

    elastic = False  # whether the number of workers may change
    removes_saved = True  # training continues while a checkpoint is uploaded

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        criterion: checkpoint.Criterion,
        mailbox: Any,
        began: float,
    ) -> None:
        device = usable(ray.train.torch.get_device())
        show, say = mailbox.show.remote, mailbox.say.remote
        display: Any = SimpleNamespace(show=show, say=say, record=say)  # sends all to the driver's display
        super().__init__(filesystem, folder, device, criterion, display)
        self.began, self._mailbox = began, mailbox
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._watched = os.environ.get(PREEMPTION_WATCHER) != "0"
        self._saved_at = -SAVE_EVERY_S
        self._steps, self._gap = 0, 1  # steps since the last look for a notice; steps until the next
        self._looked_at = time.monotonic()

    def wrap(self, module: nn.Module) -> nn.Module:
        # Parameters that a stage does not train have requires_grad off, so DDP does not wait for them.
        settings = ddp_settings(module)
        wrapped: nn.Module = ray.train.torch.prepare_model(
            module, self.device, parallel_strategy_kwargs=settings
        )
        return wrapped

    def sum(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values

    def restore(self, load: checkpoint.Load) -> checkpoint.Newest | None:
        # Rank 0 reads the storage, not Ray Train's list of checkpoints, which can name a damaged one.
        own = checkpoint.newest(self.filesystem, self.folder, load) if self.rank == 0 else None
        sent = own and own._replace(progress={})  # Ray warns about broadcasts of more than 1 kB
        found: checkpoint.Newest | None = ray.train.collective.broadcast_from_rank_zero(sent)
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
        notice = ray.train.get_preemption_info()  # waits for all ranks
        # Rank 0 decides, so that all ranks save and look again at the same step.
        now = time.monotonic()
        due = self.rank == 0 and notice is not None and now - self._saved_at >= SAVE_EVERY_S
        if due:
            self._saved_at = now
            ranks = ", ".join(map(str, notice.preempted_ranks))
            self.say(f"the node of rank {ranks} is about to be taken away; a checkpoint is saved")
        gap = 1 + int(self._steps * LOOK_EVERY_S / max(now - self._looked_at, 1e-3))
        found = torch.tensor([float(due), float(min(gap, MOST_STEPS))])
        due, gap = self.sum(found if self.rank == 0 else torch.zeros(2)).tolist()
        self._steps, self._gap, self._looked_at = 0, int(gap), now
        return bool(due)

    def check_size(self) -> None:
        if not self.elastic:
            return
        own = self.rank == 0 and ray.get(self._mailbox.must_resize.remote())
        if self.sum(torch.tensor([float(own)])).item():
            raise Resized

    def publish(self, metrics: dict[str, Any], saved: Path | None, name: str, at_once: bool = False) -> None:
        """Uploads the checkpoint folder `saved` while training continues; if `at_once`, training waits."""
        score = self.criterion.name
        if not math.isfinite(metrics.get(score, 0.0)):
            metrics = {**metrics, score: self.criterion.worst}
        if saved is None:
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        # `report` waits for the previous upload. Before a worker ends, Ray Train waits for all its uploads.
        modes = ray.train.CheckpointUploadMode
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(saved),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=modes.SYNC if at_once else modes.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
