"""How many workers fit on the nodes of a cluster. It only counts; the numbers come from Ray.

A worker is on one node, and a share of less than a GPU is of one GPU. All workers of a group are alike, so
they fit if the rooms of the nodes add up to their number, in whatever order they are placed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from operator import attrgetter

UNITS = 10_000  # Ray counts resources in units of 1e-4
BINARY = 2**16


@dataclass(frozen=True)
class Node:
    """What a node has, or has free. Parts of a CPU do not count."""

    cpus: int
    gpus: float = 0.0
    address: str = ""

    @classmethod
    def of(cls, resources: Mapping[str, float], address: str = "") -> "Node":
        """resources: as Ray states them."""
        return cls(int(resources.get("CPU", 0)), float(resources.get("GPU", 0)), address)


@dataclass(frozen=True)
class Share:
    """What one worker takes. gpus: a whole number, or a share of one GPU."""

    cpus: int
    gpus: float = 0.0


def per_gpu(share: float) -> int:
    """How many workers with this share, at most 1, are on a GPU at once."""
    return UNITS // max(round(share * UNITS), 1)


def asked_of_ray(gpus: float) -> float:
    """The number to give to Ray for workers with `gpus` GPUs each: a share becomes 1/n, or a bit less.

    Ray counts the GPUs of a node together, so that a share such as 0.4 would fit once more on two GPUs that
    each have 0.2 left. And its autoscaling coordinator subtracts floats: of five times 0.2 the last does not
    fit on a GPU. So the result is a binary fraction, of which sums are exact.
    """
    if gpus >= 1:
        return gpus
    return (UNITS // per_gpu(gpus)) * BINARY // UNITS / BINARY


def slots(node: Node, share: Share) -> int:
    """How many workers fit on a node."""
    counts = []
    if share.cpus:
        counts.append(node.cpus // share.cpus)
    if share.gpus >= 1:
        counts.append(int(node.gpus // share.gpus))
    elif share.gpus > 0:
        whole = int(node.gpus)
        rest = round((node.gpus - whole) * UNITS) // round(asked_of_ray(share.gpus) * UNITS)
        counts.append(whole * per_gpu(share.gpus) + rest)
    assert counts, "a worker takes something"
    return min(counts)


def room(nodes: Iterable[Node], share: Share) -> int:
    """How many workers fit on all nodes together."""
    return sum(slots(node, share) for node in nodes)


def fits(nodes: Sequence[Node], share: Share, count: int, spare: int = 0) -> bool:
    """Whether `count` workers fit, and leave `spare` CPUs, on any node, for others."""
    left = sum(node.cpus for node in nodes) - share.cpus * count
    return room(nodes, share) >= count and left >= spare


def most_workers(nodes: Sequence[Node], share: Share, spare: int = 0) -> int:
    """The most workers that fit beside `spare` CPUs for others; 0 if none do. share.cpus: at least 1."""
    left = sum(node.cpus for node in nodes) - spare
    return max(min(room(nodes, share), left // share.cpus), 0)


def most_cpus(nodes: Sequence[Node], count: int, gpus: float = 0.0, spare: int = 0) -> int:
    """The most CPUs that each of `count` workers with `gpus` GPUs can have, beside `spare` CPUs for others.

    0 if they do not fit with one CPU each.
    """
    largest = max((node.cpus for node in nodes), default=0)
    return next((each for each in range(largest, 0, -1) if fits(nodes, Share(each, gpus), count, spare)), 0)


def spread(nodes: Iterable[Node], count: int, gpu: bool) -> float:
    """The CPUs, or GPUs, for each of `count` processes that all run at once: 1, or 1/n if they share them.

    0 if no node has any.
    """
    total = sum(int(node.gpus) if gpu else node.cpus for node in nodes)
    if total == 0:
        return 0.0
    return asked_of_ray(1 / ceil(count / total))


def listed(nodes: Iterable[Node], free: Mapping[str, Node] | None = None, most: int = 8) -> str:
    """`10.0.0.1: 8 CPUs, 1 GPU` of each node, of `most` nodes at most.

    free: by address, for `10.0.0.1: 3 of 8 CPUs, 0 of 1 GPU`.
    """
    ordered = sorted(nodes, key=attrgetter("address"))
    found = [f"{node.address}: {_have(node, (free or {}).get(node.address))}" for node in ordered[:most]]
    if len(ordered) > most:
        found.append(f"and {len(ordered) - most} more")
    return "; ".join(found) or "no node"


def _have(node: Node, free: Node | None) -> str:
    counts = [(node.cpus, free and free.cpus, "CPU"), (node.gpus, free and free.gpus, "GPU")]
    return ", ".join(
        f"{'' if left is None else f'{left:g} of '}{n:g} {what}{'s' if n != 1 else ''}"
        for n, left, what in counts
        if n or what == "CPU"
    )
