"""What a cluster has, and the workers that fit it."""

import time
from typing import Any

import ray
from ray._private import state as ray_state
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.placement import Node, listed
from npdraw_dist.training.workers import Workers, can_grow, fit, is_local, plan_local

POLL_S = 1.0


def start_bookkeeper(actor: type, *arguments: Any) -> Any:
    """An actor that keeps notes for this process, on its node. If it dies, `actor(*arguments)` starts again.

    What it was told before, it then knows only if it wrote that to a file of this node.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(actor)
    return remote.options(scheduling_strategy=here).remote(*arguments)


def living_nodes() -> list[Node]:
    """What the nodes of the cluster have."""
    return [Node.of(node["Resources"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]


def free_nodes() -> dict[str, Node]:
    """What nobody holds on the living nodes now, by address."""
    free = ray_state.available_resources_per_node()
    found = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return {address: Node.of(free.get(name, {}), address) for name, address in found.items()}


def require_gpu(scale: ScaleConfig) -> None:
    """Raises UserError if scale.use_gpu is true, and this machine, of which alone Ray will be, has no GPU."""
    if is_local():
        plan_local(scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None}))


def plan_workers(scale: ScaleConfig, reading: bool = False) -> Workers:
    """The workers that fit the cluster. If it is too small, asks for nodes and waits up to scale.wait_s.

    reading: leave one CPU for the reading of a stream if there are more than the least workers need. Raises
    UserError that names what is missing and what the cluster has.
    """
    deadline = time.monotonic() + scale.wait_s * can_grow()
    asked = False
    while True:
        nodes = living_nodes()
        try:
            workers = fit(scale, reading, nodes)
            if asked:
                request_resources(bundles=[])  # Ray Train makes its own request
            return workers
        except UserError as error:
            if time.monotonic() >= deadline:
                raise UserError(f"{error}; nodes: {listed(nodes)}") from None
        if not asked:  # only an autoscaler reacts to it
            gpus = scale.gpus_per_worker if scale.use_gpu else 0.0
            each = Workers(1, 1, scale.cpus_per_worker or 1, gpus).resources
            request_resources(bundles=[each] * scale.least_workers)
            asked = True
        time.sleep(POLL_S)
