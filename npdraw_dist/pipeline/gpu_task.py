"""What a GPU makes faster for the driver: on one of the cluster, or without Ray on that of this machine."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.process import ray_runs
from npdraw_dist.training.device import refuse_tf32
from npdraw_dist.training.workers import device_here

Result = TypeVar("Result")


class Done(NamedTuple, Generic[Result]):
    """What the work returned, and the CPU seconds that it took elsewhere than in this process."""

    result: Result
    core_seconds: float


def has_gpu(scale: ScaleConfig) -> bool:
    """Whether the work runs on a GPU: if the cluster has one and scale.use_gpu does not forbid it.

    Also if scale.use_gpu requires one and the cluster can grow: a node that was idle may have been removed.
    Where all is done in this process, its own GPU counts.
    """
    if scale.here:
        return device_here(scale).type == "cuda"
    if scale.use_gpu is False or not ray_runs():
        return False
    from npdraw_dist.pipeline.gpu_process import cluster_has_gpu

    return cluster_has_gpu(scale)


def on_gpu(scale: ScaleConfig, title: str, work: Callable[..., Result], *arguments: Any) -> Done[Result]:
    """`work(device, *arguments)`, in a process of its own that holds a GPU if the cluster `has_gpu`.

    Without one it runs here, on the CPU; and with scale.num_workers 0 on the device of this process. title:
    names the work where it has to wait. The device is a GPU if torch finds it there. Raises the UserError
    that `work` raises.
    """
    if scale.here:
        device = device_here(scale)
        refuse_tf32(device)
        return Done(work(device, *arguments), 0.0)
    if not has_gpu(scale):
        return Done(work(torch.device("cpu"), *arguments), 0.0)
    from npdraw_dist.pipeline.gpu_process import run_there

    return Done(*run_there(scale, title, work, arguments))
