"""The resources of a cluster's nodes, how many workers fit on them, and how large the workers can be."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.start import can_grow, is_local, local_cpus
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import local_device

UNITS = 10_000  # Ray counts resources in units of 1e-4
BINARY = 2**16
POLL_S, SAY_EVERY_S = 1.0, 60.0


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs that a node has, or has free. Fractions of a CPU are dropped."""

    cpus: int
    gpus: float = 0.0
    address: str = ""

    @classmethod
    def of(cls, resources: Mapping[str, float], address: str = "") -> "Node":
        """Makes a node from Ray's mapping: name of a resource -> amount."""
        return cls(int(resources.get("CPU", 0)), float(resources.get("GPU", 0)), address)

    def __str__(self) -> str:
        """The resources as text, such as `8 CPUs, 1 GPU`."""
        gpus = f", {_counted(self.gpus, 'GPU')}" if self.gpus else ""
        return _counted(self.cpus, "CPU") + gpus


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'s' if number != 1 else ''}"


def living_nodes() -> list[Node]:
    """The resources of each living node of the cluster."""
    import ray

    return [Node.of(node["Resources"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]


def free_now() -> Node:
    """The free resources of all nodes together, since Ray's public interface does not list them by node."""
    import ray

    return Node.of(ray.available_resources())


def local_resources(scale: ScaleConfig) -> dict[str, float]:
    """The resources of a Ray that runs on this machine alone, in the format of `ray.nodes`."""
    return {"CPU": float(local_cpus(scale)), "GPU": float(torch.cuda.device_count())}


def per_gpu(share: float) -> int:
    """How many workers with this share (at most 1) of a GPU run on one GPU at once."""
    return UNITS // max(round(share * UNITS), 1)


def ray_share(gpus: float) -> float:
    """The amount to request for workers with this share of a GPU: 1/n rounded down to a binary fraction.

    Ray subtracts floats, so a fifth worker with 0.2 would not fit. Sums of binary fractions are exact.
    """
    return (UNITS // per_gpu(gpus)) * BINARY // UNITS / BINARY


def room(nodes: Iterable[Node], cpus: int, gpus: float = 0.0) -> int:
    """How many workers with `cpus` CPUs and `gpus` (at most 1) of a GPU fit on all nodes together."""
    return sum(_slots(node, cpus, gpus) for node in nodes)


def _slots(node: Node, cpus: int, gpus: float) -> int:
    counts = []
    if cpus:
        counts.append(node.cpus // cpus)
    if gpus:
        whole = int(node.gpus)
        rest = round((node.gpus - whole) * UNITS) // round(ray_share(gpus) * UNITS)
        counts.append(whole * per_gpu(gpus) + rest)
    assert counts, "a worker needs a CPU or a GPU"
    return min(counts)


def most_cpus(nodes: Sequence[Node], count: int, gpus: float = 0.0) -> int:
    """The most CPUs that each of `count` workers with `gpus` GPUs can have; 0 if they do not fit."""
    largest = max((node.cpus for node in nodes), default=0)
    return next((each for each in range(largest, 0, -1) if room(nodes, each, gpus) >= count), 0)


def listed(nodes: Iterable[Node], most: int = 8) -> str:
    """The first `most` nodes as text, such as `10.0.0.1: 8 CPUs, 1 GPU; ...`."""
    ordered = sorted(nodes, key=attrgetter("address"))
    found = [f"{node.address}: {node}" for node in ordered[:most]]
    if len(ordered) > most:
        found.append(f"and {len(ordered) - most} more")
    return "; ".join(found) or "no node"


@dataclass(frozen=True)
class Workers:
    """`least` to `most` workers, each with `cpus` CPUs and `gpus` of a GPU: 0, a share, or 1."""

    least: int
    most: int
    cpus: int
    gpus: float = 0.0

    @property
    def gpu(self) -> bool:
        return self.gpus > 0

    @property
    def resources(self) -> dict[str, float]:
        """What each worker requests from Ray."""
        return {"CPU": self.cpus, **({"GPU": ray_share(self.gpus)} if self.gpu else {})}

    def __str__(self) -> str:
        count = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        each = _counted(self.cpus, "CPU") + (f" and {describe_gpus(self.gpus)}" if self.gpu else "")
        return f"{count} worker{'s' if self.most > 1 else ''} of {each}"


def describe_gpus(gpus: float) -> str:
    """The share of a GPU as text, such as `a GPU` or `1/4 of a GPU`."""
    return "a GPU" if per_gpu(gpus) == 1 else f"1/{per_gpu(gpus)} of a GPU"


def fit(scale: ScaleConfig, nodes: Sequence[Node]) -> Workers:
    """Finds the most workers that fit, then the most CPUs for each. Raises UserError if too few fit."""
    least, gpus = scale.least_workers, scale.gpus_per_worker
    if scale.use_gpu is False or (scale.use_gpu is None and room(nodes, 1, gpus) < least):
        gpus = 0.0
    count = max(least, min(scale.most_workers, room(nodes, 1, gpus)))
    workers = Workers(
        least, scale.most_workers, scale.cpus_per_worker or most_cpus(nodes, count, gpus) or 1, gpus
    )
    found = room(nodes, workers.cpus, gpus)
    if found < least:
        need = Workers(least, least, workers.cpus, gpus)
        on_cpu = ", or --scale.use_gpu false, which trains on CPUs" if gpus else ""
        raise UserError(
            f"the cluster needs room for {need}, and has room for {found}; nodes: {listed(nodes)} (lower "
            f"--scale.num_workers or --scale.cpus_per_worker{on_cpu}; raise --scale.wait_s where nodes are "
            "still joining)"
        )
    return workers


def shortage(scale: ScaleConfig) -> str | None:
    """What the cluster lacks now for the workers of a training; None if it has room for them."""
    try:
        fit(scale, living_nodes())
    except UserError as error:
        return str(error)
    return None


def worker_in_process(scale: ScaleConfig) -> Workers:
    """This process as a worker. Raises UserError if scale.use_gpu requires a GPU and there is none."""
    return Workers(1, 1, torch.get_num_threads(), float(local_device(scale.use_gpu).type == "cuda"))


def plan_local(scale: ScaleConfig) -> Workers:
    """The workers that fit on this machine, found without starting Ray. Raises UserError if too few fit."""
    return fit(scale, [Node.of(local_resources(scale), "this machine")])


def require_gpu(scale: ScaleConfig) -> None:
    """Raises UserError if scale.use_gpu is true and Ray would start on this machine, which has no GPU."""
    if is_local():
        plan_local(scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None}))


def plan_workers(scale: ScaleConfig, say: Callable[[str], None] = print) -> Workers:
    """The workers that fit the cluster. If too few fit, requests nodes and waits up to scale.wait_s for them.

    say: called with a message when the wait begins and every minute. Raises UserError if too few still fit.
    """
    from ray.autoscaler.sdk import request_resources

    started = time.monotonic()
    deadline, next_line = started + scale.wait_s * can_grow(), started
    requested = False
    try:
        while True:
            try:
                return fit(scale, living_nodes())
            except UserError as error:
                now = time.monotonic()
                if now >= deadline:
                    raise
                if now >= next_line:
                    next_line = now + SAY_EVERY_S
                    say(f"waits for nodes ({now - started:.0f} of {scale.wait_s} s): {error}")
            # Only an autoscaler reacts to a request. Ray Data and Train overwrite it, so it is repeated.
            requested = True
            gpus = scale.gpus_per_worker if scale.use_gpu else 0.0
            each = Workers(1, 1, scale.cpus_per_worker or 1, gpus).resources
            request_resources(bundles=[each] * scale.least_workers)
            time.sleep(POLL_S)
    finally:
        if requested:  # removed, since a request outlives the job; Ray Train makes its own
            request_resources(bundles=[])
