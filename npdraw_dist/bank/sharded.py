"""k-means over patches that lie in several Ray actors: each assigns and sums its own, the driver combines."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from npdraw_dist.bank.kmeans import Clustering, cluster
from npdraw_dist.bank.shard import PatchShard
from npdraw_dist.core.errors import UserError


class RayShards:
    """One actor of one CPU for each of `shards`: (n, D) uint8 arrays or Ray references to them."""

    def __init__(self, shards: Iterable[Any], gpu: bool) -> None:
        shards = list(shards)
        resources = ray.cluster_resources()
        # Shards may outnumber the devices; they then share them.
        share = {name: min(1.0, resources.get(name, 0) / len(shards)) for name in ("CPU", "GPU")}
        actor: Any = ray.remote(
            num_cpus=_fraction(share["CPU"]),
            num_gpus=_fraction(share["GPU"]) if gpu else 0,
        )(PatchShard)
        self._actors = [actor.remote(shard, number, gpu) for number, shard in enumerate(shards)]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        try:
            return ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


@contextmanager
def ray_shards(shards: Iterable[Any], gpu: bool) -> Iterator[RayShards]:
    """`RayShards` whose actors end with the block."""
    actors = RayShards(shards, gpu)
    try:
        yield actors
    finally:
        actors.close()


def sharded_kmeans(
    shards: Iterable[NDArray[np.uint8] | ray.ObjectRef[NDArray[np.uint8]]],
    k: int,
    iterations: int,
    restarts: int,
    seed: int,
    gpu: bool = False,
) -> Clustering:
    """`kmeans` of the patches of all `shards`, (n, D) uint8 each, in one Ray actor a shard.

    The same start and steps as `kmeans` of the shards one after the other. Raises UserError likewise.
    """
    with ray_shards(shards, gpu) as actors:
        return cluster(actors, k, iterations, restarts, seed)


def _fraction(share: float) -> float:
    # Ray takes 4 decimals; rounding up could ask for more than there is.
    return math.floor(share * 1e4) / 1e4
