"""Runs work in Ray actors: one actor for each of several objects, or one that holds a GPU for the driver."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed import resources
from npdraw_dist.distributed.start import can_grow, ray_runs
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import COMPUTE, is_quiet, local_device

SURVIVE: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 3}  # how many deaths an actor survives
WAIT_S = 30.0  # seconds between two messages that no GPU is free

Result = TypeVar("Result")


class Actors:
    """Ray actors, one with the object `kind(*item)` for each item of `arguments`.

    No call may change an object, since Ray restarts a dead actor with a new object. Each actor reserves a
    GPU, or a CPU if gpu is False or the cluster has no GPU. Actors share a GPU or CPU if there are too few.
    """

    def __init__(self, kind: type, arguments: Sequence[tuple[Any, ...]], gpu: bool | None) -> None:
        import ray

        nodes, count = resources.living_nodes(), len(arguments)
        gpus = 0.0 if gpu is False else _share(sum(int(node.gpus) for node in nodes), count)
        cpus = 0.0 if gpus else _share(sum(node.cpus for node in nodes), count)
        actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, **SURVIVE)(kind)
        self._actors = [actor.remote(*each) for each in arguments]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """The results of calling `method` in all actors. Raises UserError if one raises it or keeps dying."""
        import ray

        try:
            return list(ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors]))
        except ray.exceptions.RayTaskError as error:
            raise _own(error) from None
        except ray.exceptions.RayActorError:
            raise UserError(
                "a process that held a share of the data died again and again; run the same command again"
            ) from None

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)


def _share(total: int, count: int) -> float:
    """The share of a CPU or GPU per actor, for `count` actors on `total` units: 1 or 1/n; 0 if total is 0."""
    return resources.UNITS // math.ceil(count / total) / resources.UNITS if total else 0.0


def _own(error: Any) -> Exception:
    """The UserError that a task raised; Ray's error if the task raised another exception."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else error


def has_gpu(scale: ScaleConfig, may_join: bool = False) -> bool:
    """Whether there is a GPU to use, in the cluster or, with scale.num_workers 0, in this process.

    may_join: also true if scale.use_gpu requires a GPU and the cluster can grow, since an autoscaler may have
    removed an idle GPU node.
    """
    if scale.in_process:
        return local_device(scale.use_gpu).type == "cuda"
    if scale.use_gpu is False or not ray_runs():
        return False
    found = resources.room(resources.living_nodes(), 1, scale.gpus_per_worker) > 0
    return found or bool(may_join and scale.use_gpu and can_grow())


def on_gpu(
    scale: ScaleConfig, title: str, work: Callable[..., Result], *arguments: Any
) -> tuple[Result, float]:
    """Runs `work(device, *arguments)` on a GPU that is there or may join; returns its result and CPU seconds.

    A separate process holds the GPU and ends with the work: the driver's node may have no GPU, and a CUDA
    context in the driver would occupy some hundred MB. Without a GPU, or with scale.num_workers 0, the work
    runs in this process, and 0 seconds are returned. title: name of the work in messages while it waits for a
    GPU. Raises the UserError that `work` raises.
    """
    if scale.in_process or not has_gpu(scale, may_join=True):
        device = local_device(scale.use_gpu) if scale.in_process else torch.device("cpu")
        return work(device, *arguments), 0.0
    import ray

    share = scale.gpus_per_worker
    own = COMPUTE if can_grow() else {}
    variables = {**own, "OMP_NUM_THREADS": str(_threads(resources.living_nodes(), share))}
    remote: Any = ray.remote(num_cpus=1, num_gpus=resources.ray_share(share), **SURVIVE)(_Process)
    process = remote.options(
        runtime_env={"env_vars": variables},
        scheduling_strategy="DEFAULT",  # not in the placement group of a Tune trial, which has no GPU
    ).remote()
    try:
        ready = process.ready.remote()
        while not ray.wait([ready], timeout=WAIT_S)[0]:
            nodes, free = resources.listed(resources.living_nodes()), resources.free_now()
            if not is_quiet():
                print(f"{title}: waits for {resources.describe_gpus(share)}; nodes: {nodes}; free: {free}")
        result, core_seconds = ray.get(process.run.remote(work, arguments))
        return result, core_seconds
    except ray.exceptions.RayTaskError as error:
        raise _own(error) from None
    finally:
        ray.kill(process)


class _Process:
    """The actor that holds the GPU."""

    def ready(self) -> None:
        """Returns once the actor has its GPU."""

    def run(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float]:
        cpu_started = time.process_time()
        device = local_device()
        return work(device, *arguments), time.process_time() - cpu_started


def _threads(nodes: list[resources.Node], share: float) -> int:
    """Threads for `on_gpu`, which reserves only one CPU: the fewest CPUs per share of a GPU on any node."""
    each = [node.cpus / node.gpus for node in nodes if resources.room([node], 1, share)]
    return max(int(min(each, default=1) * share), 1)
