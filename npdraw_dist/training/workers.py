"""How many workers fit on the nodes of a cluster, and how large they can be; this counts without Ray."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from operator import attrgetter

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process import cpu_count, device_here, ray_runs
from npdraw_dist.training.environment import OWN_RAY

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

    def __str__(self) -> str:
        """`8 CPUs, 1 GPU`."""
        gpus = f", {_counted(self.gpus, 'GPU')}" if self.gpus else ""
        return _counted(self.cpus, "CPU") + gpus


def per_gpu(share: float) -> int:
    """How many workers with this share, at most 1, are on a GPU at once."""
    return UNITS // max(round(share * UNITS), 1)


def asked_of_ray(gpus: float) -> float:
    """The number to give to Ray for workers with this share of a GPU: 1/n, or a bit less.

    Of five times 0.2 the last would not fit, since Ray subtracts floats. So it is a binary fraction, whose
    sums are exact.
    """
    return (UNITS // per_gpu(gpus)) * BINARY // UNITS / BINARY


def room(nodes: Iterable[Node], cpus: int, gpus: float = 0.0) -> int:
    """How many workers fit on all nodes together.

    cpus, gpus: of each worker; a share of a GPU, at most 1.
    """
    return sum(_slots(node, cpus, gpus) for node in nodes)


def _slots(node: Node, cpus: int, gpus: float) -> int:
    """How many workers fit on a node."""
    counts = []
    if cpus:
        counts.append(node.cpus // cpus)
    if gpus:
        whole = int(node.gpus)
        rest = round((node.gpus - whole) * UNITS) // round(asked_of_ray(gpus) * UNITS)
        counts.append(whole * per_gpu(gpus) + rest)
    assert counts, "a worker takes something"
    return min(counts)


def most_cpus(nodes: Sequence[Node], count: int, gpus: float = 0.0) -> int:
    """The most CPUs, or 0, of each of `count` workers with `gpus` GPUs."""
    largest = max((node.cpus for node in nodes), default=0)
    sizes = range(largest, 0, -1)
    return next((each for each in sizes if room(nodes, each, gpus) >= count), 0)


def listed(nodes: Iterable[Node], most: int = 8) -> str:
    """`10.0.0.1: 8 CPUs, 1 GPU; ...`."""
    ordered = sorted(nodes, key=attrgetter("address"))
    found = [f"{node.address}: {node}" for node in ordered[:most]]
    if len(ordered) > most:
        found.append(f"and {len(ordered) - most} more")
    return "; ".join(found) or "no node"


@dataclass(frozen=True)
class Workers:
    """`least` to `most` workers with `cpus` CPUs each, and `gpus` of a GPU: 0, a share, or 1."""

    least: int
    most: int
    cpus: int
    gpus: float = 0.0

    @property
    def gpu(self) -> bool:
        return self.gpus > 0

    @property
    def asked(self) -> int | tuple[int, int]:
        """The number for Ray Train's ScalingConfig: a range makes the run elastic."""
        return self.least if self.least == self.most else (self.least, self.most)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is asked for, for each of them."""
        return {"CPU": self.cpus, **({"GPU": asked_of_ray(self.gpus)} if self.gpu else {})}

    def __str__(self) -> str:
        count = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        each = _counted(self.cpus, "CPU") + (f" and {describe_gpus(self.gpus)}" if self.gpu else "")
        return f"{count} worker{'s' if self.most > 1 else ''} of {each}"


def describe_gpus(gpus: float) -> str:
    """`a GPU` or `1/4 of a GPU`."""
    return "a GPU" if per_gpu(gpus) == 1 else f"1/{per_gpu(gpus)} of a GPU"


def worker_here(scale: ScaleConfig) -> Workers:
    """Describes this process as a worker. Raises UserError as `device_here`."""
    return Workers(1, 1, torch.get_num_threads(), float(device_here(scale.use_gpu).type == "cuda"))


def local_cpus(scale: ScaleConfig) -> int:
    """The CPUs that a Ray of this machine alone is given: at least a slot for each worker."""
    return max(cpu_count(), scale.least_workers)


def local_resources(scale: ScaleConfig) -> dict[str, float]:
    """What a Ray of this machine alone will have, as `ray.nodes` tells it."""
    return {"CPU": float(local_cpus(scale)), "GPU": float(torch.cuda.device_count())}


def is_local() -> bool:
    """Whether this process will start a Ray of its own: none runs, and no cluster is named."""
    return not os.environ.get("RAY_ADDRESS") and not ray_runs()


def placed(scale: ScaleConfig) -> ScaleConfig:
    """`scale` with a range `0:N` resolved, for this process or for the cluster that it has."""
    return scale.placed(cluster=not is_local())


def plan_local(scale: ScaleConfig) -> Workers:
    """`plan_workers` of a Ray that this machine alone would start; starts nothing. Raises UserError."""
    here = [Node.of(local_resources(scale), "this machine")]
    try:
        return fit(scale, here)
    except UserError as error:
        raise UserError(f"{error}; nodes: {listed(here)}") from None


def can_grow() -> bool:
    """Whether nodes can join: none does a Ray that a command started on its machine.

    RAY_ADDRESS names the cluster to the driver of a job, not to its actors, such as a trial of a sweep.
    """
    return bool(os.environ.get("RAY_ADDRESS")) or (ray_runs() and OWN_RAY not in os.environ)


def fit(scale: ScaleConfig, nodes: Sequence[Node]) -> Workers:
    """The workers that fit on the nodes, as large as lets most of them run. Raises UserError if none fit."""
    least, most = scale.least_workers, scale.most_workers
    gpus = _gpus(scale, nodes)
    count = max(least, min(most, room(nodes, 1, gpus)))
    each = scale.cpus_per_worker or most_cpus(nodes, count, gpus) or 1
    workers = Workers(least, most, each, gpus)
    if room(nodes, each, gpus) < least:
        raise UserError(
            f"{_lack_of_cpus(workers, nodes)} (lower --scale.num_workers or "
            "--scale.cpus_per_worker, or raise --scale.wait_s where nodes are still joining)"
        )
    return workers


def _gpus(scale: ScaleConfig, nodes: Sequence[Node]) -> float:
    """The GPUs of each worker; 0 if not wanted, or too few. Raises UserError if required and too few."""
    least, gpus = scale.least_workers, scale.gpus_per_worker
    if scale.use_gpu is None:
        return gpus if room(nodes, 1, gpus) >= least else 0.0
    if scale.use_gpu and room(nodes, 0, gpus) < least:
        needed = ceil(least / per_gpu(gpus))
        raise UserError(
            f"{_counted(least, 'worker')} {'needs' if least == 1 else 'need'} {_counted(needed, 'GPU')}; the "
            f"cluster has {sum(node.gpus for node in nodes):g} (--scale.use_gpu false trains on CPU)"
        )
    return gpus if scale.use_gpu else 0.0


def _lack_of_cpus(workers: Workers, nodes: Sequence[Node]) -> str:
    """What is missing for workers whose GPUs are there."""
    suited = [node for node in nodes if not workers.gpu or room([node], 0, workers.gpus)]
    have = sum(node.cpus for node in suited)
    need, verb = workers.cpus * workers.least, "needs" if workers.least == 1 else "need"
    where = "the nodes with GPUs have" if len(suited) < len(nodes) else "the cluster has"
    parted = f", but room for {room(suited, workers.cpus, workers.gpus)} of them" if need <= have else ""
    asked = f"{_counted(workers.least, 'worker')} of {workers.cpus} CPUs {verb} {need}"
    return f"{asked}; {where} {have}{parted}"


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'s' if number != 1 else ''}"
