"""Shards of patches in Ray actors. Each assigns and sums its own patches; the driver combines the results."""

import math
from collections.abc import Sequence
from typing import Any

import ray
from numpy.typing import ArrayLike

from npdraw_dist.bank.shard import PatchShard
from npdraw_dist.core.errors import UserError


class RayShards:
    """One actor of at most one CPU for each of `parts`: (n, D) uint8 arrays, or Ray references to them.

    `close` ends the actors.
    """

    def __init__(self, parts: Sequence[ArrayLike | ray.ObjectRef[Any]], gpu: bool) -> None:
        resources = ray.cluster_resources()
        # Shards can outnumber the devices and then share them. Ray takes 4 decimals. Rounding up could ask
        # for more than there is.
        cpus, gpus = (
            math.floor(min(1.0, resources.get(name, 0) / len(parts)) * 1e4) / 1e4 for name in ("CPU", "GPU")
        )
        actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus if gpu else 0)(PatchShard)
        self._actors = [actor.remote(part, number, gpu) for number, part in enumerate(parts)]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        try:
            return list(ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors]))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
