"""Shards of patches in Ray actors. Each assigns and sums its own patches; the driver combines the results."""

from collections.abc import Sequence
from typing import Any

import ray
from numpy.typing import ArrayLike

from npdraw_dist.bank.ray_portions import lost_patches
from npdraw_dist.bank.shard import PatchShard
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.placement import Node, spread


class RayShards:
    """An actor for each of `parts`: (n, D) uint8 arrays, or Ray references to them.

    It holds a CPU, or without gpu False a GPU; a share of one if there are more parts. gpu: as a `Searcher`
    takes it. `close` ends the actors, and so frees the GPUs.
    """

    def __init__(self, parts: Sequence[ArrayLike | ray.ObjectRef[Any]], gpu: bool | None) -> None:
        nodes = [Node.of(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        gpus = 0.0 if gpu is False else spread(nodes, len(parts), gpu=True)
        cpus = 0.0 if gpus else spread(nodes, len(parts), gpu=False)
        actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(PatchShard)
        self._actors = [actor.remote(part, number, gpu) for number, part in enumerate(parts)]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        try:
            with lost_patches():
                return list(ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors]))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
