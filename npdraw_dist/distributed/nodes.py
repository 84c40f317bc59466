"""Checks that every node sees the folders of a run, and that each worker can use its GPU."""

from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from npdraw_dist.system.errors import UserError
from npdraw_dist.system.landmarks import Landmarks, differences, require_seen

NODE_TIMEOUT_S = 120  # limit of a small task; a node may be busy, or load Python from a shared disk


def require_shared(folders: Sequence[Landmarks]) -> None:
    """Raises UserError if a living node does not see one of the folders as this process does."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2 or not folders:
        return
    look: Any = ray.remote(num_cpus=0)(differences)
    answers = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            folders
        ): address
        for node, address in nodes.items()
    }
    done, silent = ray.wait(list(answers), num_returns=len(answers), timeout=NODE_TIMEOUT_S)
    if silent:
        raise UserError(f"no answer from {', '.join(answers[answer] for answer in silent)}; is it starting?")
    found = {answers[answer]: _answer(answer, len(folders)) for answer in done}
    for number, folder in enumerate(folders):
        blind = {node: texts[number] for node, texts in found.items() if texts[number] is not None}
        if blind:
            raise folder.refusal(list(blind), next((text for text in blind.values() if text), ""))


def _answer(answer: Any, count: int) -> list[str | None]:
    """The differences that a node found; all None if the node died, since no worker will run there."""
    try:
        return list(ray.get(answer))
    except ray.exceptions.RayError:
        return [None] * count


def require_on_this_node(folders: Sequence[Landmarks]) -> None:
    """Raises BlindNode, with the address of this node, if this node does not see one of the folders."""
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
