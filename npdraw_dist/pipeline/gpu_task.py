"""Runs work of the driver on a GPU: one of the cluster, or without Ray that of this machine.

A cluster runs it in a process that ends with the work: the driver's node may have no GPU, and a GPU that the
driver used itself would hold its context, some hundred MB, as long as the driver lives.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import COMPUTE, device_here, ray_runs
from npdraw_dist.pipeline.progress import console
from npdraw_dist.training import workers

WAIT_S = 30.0  # how often it is said that there is no free GPU

Result = TypeVar("Result")


def has_gpu(scale: ScaleConfig) -> bool:
    """Whether the work runs on a GPU: if the cluster has one and scale.use_gpu does not forbid it.

    Also if scale.use_gpu requires one and the cluster can grow: a node that was idle may have been removed.
    Where all is done in this process, its own GPU counts.
    """
    if scale.here:
        return device_here(scale.use_gpu).type == "cuda"
    if scale.use_gpu is False or not ray_runs():
        return False
    from npdraw_dist.training.cluster import living_nodes

    found = workers.room(living_nodes(), 1, scale.gpus_per_worker) > 0
    return found or bool(scale.use_gpu and workers.can_grow())


def on_gpu(
    scale: ScaleConfig, title: str, work: Callable[..., Result], *arguments: Any
) -> tuple[Result, float]:
    """`work(device, *arguments)`, in a process that holds a GPU if the cluster `has_gpu`; its CPU seconds.

    Without one it runs here, on the CPU; and with scale.num_workers 0 on the device of this process. title:
    names the work where it has to wait. The device is a GPU if torch finds it there. Raises the UserError
    that `work` raises.
    """
    if scale.here or not has_gpu(scale):
        device = device_here(scale.use_gpu) if scale.here else torch.device("cpu")
        return work(device, *arguments), 0.0
    import ray

    from npdraw_dist.training.cluster import free_now, living_nodes

    share = scale.gpus_per_worker
    own = COMPUTE if workers.can_grow() else {}
    variables = {**own, "OMP_NUM_THREADS": str(_threads(living_nodes(), share))}
    remote: Any = ray.remote(num_cpus=1, num_gpus=workers.asked_of_ray(share))(_Process)
    process = remote.options(  # a node that dies under it is survived as a task is
        max_restarts=3,
        max_task_retries=3,
        runtime_env={"env_vars": variables},
        scheduling_strategy="DEFAULT",  # in a trial not bound to Tune's bundle, which has no GPU
    ).remote()
    try:
        ready = process.ready.remote()
        while not ray.wait([ready], timeout=WAIT_S)[0]:
            what = f"a process with a CPU and {workers.describe_gpus(share)} has not started yet"
            nodes = f"nodes: {workers.listed(living_nodes())}; free: {free_now()}"
            console.print(f"{title}: {what}; {nodes}", markup=False)
        ray.get(ready)
        result, core_seconds = ray.get(process.run.remote(work, arguments))
        return result, core_seconds
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        ray.kill(process)


class _Process:
    """The actor that holds the GPU."""

    def ready(self) -> None:
        """Returns once the actor has its GPU."""

    def run(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
        cpu_started = time.process_time()
        device = device_here()
        return work(device, *arguments), time.process_time() - cpu_started


def _threads(nodes: list[workers.Node], share: float) -> int:
    """The CPUs that go with a share of a GPU on the node with the fewest. Ray is asked for one of them."""
    each = [node.cpus / node.gpus for node in nodes if workers.room([node], 1, share)]
    return max(int(min(each, default=1) * share), 1)
