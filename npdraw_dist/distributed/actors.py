"""Work in Ray actors that the driver calls: objects that share the cluster, and a task that holds a GPU."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import COMPUTE, device_here, is_quiet
from npdraw_dist.distributed import resources
from npdraw_dist.distributed.start import can_grow, ray_runs

SURVIVE: dict[str, Any] = {"max_restarts": 3, "max_task_retries": 3}  # deaths of an actor's process or node
WAIT_S = 30.0  # how often it is said that there is no free GPU

Result = TypeVar("Result")


class Actors:
    """`kind(*arguments)` for each item of `arguments`, in an actor each.

    Ray starts an actor again if it dies: so no call may change one. Each holds a CPU, or without gpu False a
    GPU; a share of one if there are more actors than these.
    """

    def __init__(self, kind: type, arguments: Sequence[tuple[Any, ...]], gpu: bool | None) -> None:
        import ray

        gpus = 0.0 if gpu is False else _for_each("GPU", len(arguments))
        cpus = 0.0 if gpus else _for_each("CPU", len(arguments))
        actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, **SURVIVE)(kind)
        self._actors = [actor.remote(*each) for each in arguments]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """The result of `method(*arguments)` of each, in their order. Raises the UserError of one."""
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


def _for_each(resource: str, count: int) -> float:
    """The share of a resource for each of `count` actors at once: 1, or 1/n; 0 if there is none."""
    import ray

    total = sum(int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"])
    return resources.UNITS // math.ceil(count / total) / resources.UNITS if total else 0.0


def _own(error: Any) -> Exception:
    """The UserError that a task raised, else Ray's error."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else error


def has_gpu(scale: ScaleConfig) -> bool:
    """Whether `on_gpu` uses a GPU: if the cluster has one and scale.use_gpu does not forbid it.

    Also if scale.use_gpu requires one and the cluster can grow: a node that was idle may have been removed.
    Where all is done in this process, its own GPU counts.
    """
    if scale.here:
        return device_here(scale.use_gpu).type == "cuda"
    if scale.use_gpu is False or not ray_runs():
        return False
    found = resources.room(resources.living_nodes(), 1, scale.gpus_per_worker) > 0
    return found or bool(scale.use_gpu and can_grow())


def on_gpu(
    scale: ScaleConfig, title: str, work: Callable[..., Result], *arguments: Any
) -> tuple[Result, float]:
    """`work(device, *arguments)`, in a process that holds a GPU if the cluster `has_gpu`; its CPU seconds.

    The process ends with the work: the driver's node may have no GPU, and a GPU that the driver used itself
    would hold its context, some hundred MB, as long as the driver lives. Without a GPU the work runs here, on
    the CPU; and with scale.num_workers 0 on the device of this process. title: names the work where it has
    to wait. The device is a GPU if torch finds it there. Raises the UserError that `work` raises.
    """
    if scale.here or not has_gpu(scale):
        device = device_here(scale.use_gpu) if scale.here else torch.device("cpu")
        return work(device, *arguments), 0.0
    import ray

    share = scale.gpus_per_worker
    own = COMPUTE if can_grow() else {}
    variables = {**own, "OMP_NUM_THREADS": str(_threads(resources.living_nodes(), share))}
    remote: Any = ray.remote(num_cpus=1, num_gpus=resources.ray_share(share), **SURVIVE)(_Process)
    process = remote.options(
        runtime_env={"env_vars": variables},
        scheduling_strategy="DEFAULT",  # in a trial not bound to Tune's bundle, which has no GPU
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
        device = device_here()
        return work(device, *arguments), time.process_time() - cpu_started


def _threads(nodes: list[resources.Node], share: float) -> int:
    """The CPUs that go with a share of a GPU on the node with the fewest. The actor holds one of them."""
    each = [node.cpus / node.gpus for node in nodes if resources.room([node], 1, share)]
    return max(int(min(each, default=1) * share), 1)
