"""A process of Ray that holds a GPU, on whatever node, for work of the driver; it ends with the work.

The driver's own node can be without a GPU. And a GPU that the driver used itself would keep its context, some
hundred MB, for as long as the driver lives.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.placement import Node, Share, asked_of_ray, listed, room
from npdraw_dist.pipeline.progress import console
from npdraw_dist.training.device import refuse_tf32
from npdraw_dist.training.environment import COMPUTE
from npdraw_dist.training.resources import free_nodes, living_nodes
from npdraw_dist.training.workers import can_grow, describe_gpus

FIRST_S, AGAIN_S = 30.0, 60.0  # after which it is said that there is no free GPU

Result = TypeVar("Result")


def cluster_has_gpu(scale: ScaleConfig) -> bool:
    """Whether the cluster has a GPU for the work; or may get it, where scale.use_gpu requires one."""
    return room(living_nodes(), _share(scale)) > 0 or bool(scale.use_gpu and can_grow())


def run_there(
    scale: ScaleConfig, title: str, work: Callable[..., Result], arguments: tuple[Any, ...]
) -> tuple[Result, float]:
    """What `work(device, *arguments)` returns in a process that holds a GPU, and the CPU seconds it took."""
    process = _start(scale)
    try:
        _wait(process.ready.remote(), scale, title)
        done: tuple[Result, float] = ray.get(process.run.remote(work, arguments))
        return done
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
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        refuse_tf32(device)
        return work(device, *arguments), time.process_time() - cpu_started


def _share(scale: ScaleConfig) -> Share:
    return Share(1, min(scale.gpus_per_worker, 1.0))


def _start(scale: ScaleConfig) -> Any:
    """The handle of a `_Process`; a node that dies under it is survived as a task is."""
    share = _share(scale)
    variables = {"OMP_NUM_THREADS": str(_threads(living_nodes(), share)), **(COMPUTE if can_grow() else {})}
    remote: Any = ray.remote(num_cpus=share.cpus, num_gpus=asked_of_ray(share.gpus))(_Process)
    return remote.options(
        max_restarts=3,
        max_task_retries=3,
        runtime_env={"env_vars": variables},
        scheduling_strategy="DEFAULT",  # in a trial not bound to Tune's bundle, which has no GPU
    ).remote()


def _threads(nodes: list[Node], share: Share) -> int:
    """The CPUs that go with a share of a GPU on the node with the fewest. Ray is asked for one of them."""
    each = [node.cpus / node.gpus for node in nodes if room([node], share)]
    return max(int(min(each, default=1) * share.gpus), 1)


def _wait(ready: Any, scale: ScaleConfig, title: str) -> None:
    """Returns when the process has its GPU. Says what it waits for."""
    timeout_s = FIRST_S
    while not ray.wait([ready], timeout=timeout_s)[0]:
        timeout_s, free = AGAIN_S, listed(living_nodes(), free_nodes())
        what = f"a process with a CPU and {describe_gpus(_share(scale).gpus)} has not started yet"
        console.print(f"{title}: {what}; free: {free}", markup=False)
    ray.get(ready)
