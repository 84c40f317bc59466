"""What a cluster has, the workers that fit it, and whether every node sees the folders of a run."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import Landmarks, differences, require_seen
from npdraw_dist.training.workers import Node, Workers, can_grow, fit, is_local, listed, plan_local

POLL_S, SAY_EVERY_S = 1.0, 60.0
NODE_TIMEOUT_S = 120  # for an idle task on a node, which may be busy or read Python from a shared disk


def living_nodes() -> list[Node]:
    """What the nodes of the cluster have."""
    return [Node.of(node["Resources"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]


def free_now() -> Node:
    """What nobody holds now, on all nodes together: Ray tells no more in public."""
    return Node.of(ray.available_resources())


def require_gpu(scale: ScaleConfig) -> None:
    """Raises UserError if scale.use_gpu is true, and this machine, of which alone Ray will be, has no GPU."""
    if is_local():
        plan_local(scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None}))


def plan_workers(scale: ScaleConfig, say: Callable[[str], None] = print) -> Workers:
    """The workers that fit the cluster; asks for nodes, and waits for them up to scale.wait_s.

    say: what it waits for, at once and each minute. Raises UserError that names what is missing.
    """
    started = said_at = time.monotonic()
    deadline = started + scale.wait_s * can_grow()
    asked = False
    try:
        while True:
            nodes = living_nodes()
            try:
                return fit(scale, nodes)
            except UserError as error:
                if time.monotonic() >= deadline:
                    raise UserError(f"{error}; nodes: {listed(nodes)}") from None
                if not asked or time.monotonic() - said_at >= SAY_EVERY_S:
                    said_at = time.monotonic()
                    waited = f"{said_at - started:.0f} of {scale.wait_s} s"
                    say(f"waits for nodes ({waited}): {error}; nodes: {listed(nodes)}")
            # Only an autoscaler reacts to it. Ray Data and Train overwrite it, so it is asked again.
            asked = True
            gpus = scale.gpus_per_worker if scale.use_gpu else 0.0
            each = Workers(1, 1, scale.cpus_per_worker or 1, gpus).resources
            request_resources(bundles=[each] * scale.least_workers)
            time.sleep(POLL_S)
    finally:
        if asked:  # it stands until then, also after the job; Ray Train makes its own request
            request_resources(bundles=[])


def require_shared(folders: Sequence[Landmarks]) -> None:
    """Raises UserError if a living node does not see one of the folders as this process does."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2 or not folders:
        return
    look: Any = ray.remote(num_cpus=0)(differences)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            folders
        ): address
        for node, address in nodes.items()
    }
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    if silent:
        raise UserError(f"no answer from {', '.join(asked[answer] for answer in silent)}; is it starting?")
    found = {asked[answer]: _answer(answer, len(folders)) for answer in done}
    for number, folder in enumerate(folders):
        blind = {node: said[number] for node, said in found.items() if said[number] is not None}
        if blind:
            raise folder.refusal(list(blind), next((text for text in blind.values() if text), ""))


def _answer(answer: Any, count: int) -> list[str | None]:
    """A node's answer; no difference for a node that died meanwhile, since no worker will run there."""
    try:
        return list(ray.get(answer))
    except ray.exceptions.RayError:
        return [None] * count


def require_here(folders: Sequence[Landmarks]) -> None:
    """Raises BlindNode, with the address of this node, if it does not see one of the folders."""
    for folder in folders:
        require_seen(folder, ray.util.get_node_ip_address())


def unusable_gpu() -> str | None:
    """A warning if Ray gave this worker a GPU that PyTorch cannot use, so that it trains on the CPU."""
    if not ray.get_gpu_ids() or torch.cuda.is_available():
        return None
    build = f"CUDA {torch.version.cuda}; is the driver too old?" if torch.version.cuda else "CPUs."
    return (
        f"warning: node {ray.util.get_node_ip_address()} trains on its CPU, because PyTorch "
        f"{torch.__version__} cannot use its GPU (built for {build} See docs/cluster.md)"
    )
