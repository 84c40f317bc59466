"""A sample of patches in Ray actors, so that the driver holds none of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from npdraw_dist.bank.patches import ALL, Drawn, LostPatches
from npdraw_dist.bank.portion import Portion


@contextmanager
def lost_patches() -> Iterator[None]:
    """Raises LostPatches where an actor, or a node with what it returned, is gone."""
    try:
        yield
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
        raise LostPatches(
            "a process that held patches of the bank died; run the same command again"
        ) from None


class RayPortions:
    """`count` actors, each for a range of keys; together they hold a uniform sample, as a `Reservoir` does.

    The ranges share the keys up to `likely` equally, and the last one has those above too. Tasks add their
    blocks themselves: this object goes to them. The actors take no CPU of Ray's, since tasks need all to go
    on. `close` ends them.
    """

    def __init__(self, count: int, likely: int) -> None:
        self._bounds = np.array([likely * (part + 1) // count for part in range(count - 1)], np.uint64)
        actor: Any = ray.remote(num_cpus=0)(Portion)
        self._actors = [actor.options(scheduling_strategy="SPREAD").remote() for _ in range(count)]

    def __len__(self) -> int:
        return len(self._actors)

    def add(self, block: int, drawn: Drawn) -> None:
        """Sends each patch to the actor of its key. Raises LostPatches."""
        owner = np.searchsorted(self._bounds, drawn.keys)
        own = [owner == part for part in range(len(self))]
        with lost_patches():
            ray.get(
                [
                    actor.add.remote(block, drawn.keys[mine], drawn.patches[mine])
                    for actor, mine in zip(self._actors, own, strict=True)
                ]
            )

    def count(self, limit: int = ALL) -> int:
        """Patches whose key is at most `limit`."""
        return sum(self._call("count", limit))

    def core_seconds(self) -> float:
        return float(sum(self._call("core_seconds")))

    def parts(self, capacity: int) -> list[ray.ObjectRef[Any]]:
        """References to the patches (n, D) of each actor that has any: those of the `capacity` smallest keys.

        In the order of the keys, from part to part too. Ends the actors, whose memory the clustering needs.
        """
        parts = []
        for actor, count in zip(self._actors, self._call("count"), strict=True):
            if taken := min(count, capacity):
                parts.append(actor.take.remote(taken))
                capacity -= taken
        ray.wait(parts, num_returns=len(parts), fetch_local=False)
        self.close()
        return parts

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        with lost_patches():
            return list(ray.get([getattr(actor, method).remote(*arguments) for actor in self._actors]))

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
