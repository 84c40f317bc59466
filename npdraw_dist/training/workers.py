"""What a run needs: workers, as large as the nodes allow. No Ray is needed here."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.placement import (
    Node,
    Share,
    asked_of_ray,
    fits,
    listed,
    most_cpus,
    most_workers,
    per_gpu,
    room,
)
from npdraw_dist.core.process import ray_runs


@dataclass(frozen=True)
class Workers:
    """From `least` to `most` training workers with `cpus` CPUs and `gpus` GPUs each.

    gpus: 0, a share of one GPU, or a whole number.
    """

    least: int
    most: int
    cpus: int
    gpus: float = 0.0

    @property
    def gpu(self) -> bool:
        return self.gpus > 0

    @property
    def asked(self) -> int | tuple[int, int]:
        """As Ray Train's ScalingConfig takes it: a range makes the run elastic."""
        return self.least if self.least == self.most else (self.least, self.most)

    @property
    def share(self) -> Share:
        """What one of them takes."""
        return Share(self.cpus, self.gpus)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray is asked for, for each of them."""
        return {"CPU": self.cpus, **({"GPU": asked_of_ray(self.gpus)} if self.gpu else {})}

    def __str__(self) -> str:
        count = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        each = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        each += f" and {describe_gpus(self.gpus)}" if self.gpu else ""
        return f"{count} worker{'s' if self.most > 1 else ''} of {each}"


def describe_gpus(gpus: float) -> str:
    """`a GPU`, `2 GPUs` or `1/4 of a GPU`."""
    if gpus >= 1:
        return "a GPU" if gpus == 1 else f"{gpus:g} GPUs"
    return "a GPU" if per_gpu(gpus) == 1 else f"1/{per_gpu(gpus)} of a GPU"


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler on this machine."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def require_compiler(needed: bool) -> None:
    """Raises UserError if train.compile is set (`needed`) and there is no C++ compiler."""
    if needed and not has_compiler():
        raise UserError("train.compile needs a C++ compiler: install g++, or name one in CXX")


def device_here(scale: ScaleConfig) -> torch.device:
    """The device of a run in this process. Raises UserError if there is no GPU and scale.use_gpu is true."""
    gpu = torch.cuda.is_available()
    if scale.use_gpu and not gpu:
        raise UserError("scale.use_gpu is true, but this machine has no GPU (--scale.use_gpu false: the CPU)")
    return torch.device("cuda" if gpu and scale.use_gpu is not False else "cpu")


def worker_here(scale: ScaleConfig) -> Workers:
    """This process as a worker. Raises UserError as `device_here`."""
    return Workers(1, 1, torch.get_num_threads(), float(device_here(scale).type == "cuda"))


def local_cpus(scale: ScaleConfig) -> int:
    """The CPUs that a Ray of this machine alone is given: a slot for each worker, and one for reading."""
    return max(os.cpu_count() or 1, scale.least_workers + 1)


def local_resources(scale: ScaleConfig) -> dict[str, float]:
    """What a Ray of this machine alone will have, as `ray.nodes` tells it."""
    return {"CPU": float(local_cpus(scale)), "GPU": float(torch.cuda.device_count())}


def is_local() -> bool:
    """Whether this process will start a Ray of its own: none runs, and no cluster is named."""
    return not os.environ.get("RAY_ADDRESS") and not ray_runs()


def plan_local(scale: ScaleConfig, reading: bool = False) -> Workers:
    """`plan_workers` of a Ray that this machine alone would start; starts nothing. Raises UserError."""
    here = [Node.of(local_resources(scale), "this machine")]
    try:
        return fit(scale, reading, here)
    except UserError as error:
        raise UserError(f"{error}; nodes: {listed(here)}") from None


def can_grow() -> bool:
    """Whether nodes can join: none does a Ray that this process started."""
    return bool(os.environ.get("RAY_ADDRESS"))


def fit(scale: ScaleConfig, reading: bool, nodes: Sequence[Node]) -> Workers:
    """The workers that fit on these nodes. Raises UserError if they do not.

    Without scale.cpus_per_worker they are as large as lets as many of them run as can. reading: one CPU is
    left for the reading of a stream, where it is not needed for the least workers.
    """
    least, most, spare = scale.least_workers, scale.most_workers, int(reading)
    gpus = _gpus(scale, nodes)
    count = max(least, min(most, most_workers(nodes, Share(1, gpus), spare)))
    each = scale.cpus_per_worker or most_cpus(nodes, count, gpus, spare) or 1
    workers = Workers(least, most, each, gpus)
    if not fits(nodes, workers.share, least):
        raise UserError(
            f"{_lack_of_cpus(workers, nodes)} (lower --scale.num_workers or "
            "--scale.cpus_per_worker, or raise --scale.wait_s where nodes are still joining)"
        )
    return workers


def _gpus(scale: ScaleConfig, nodes: Sequence[Node]) -> float:
    """The GPUs of each worker: none if they are not wanted, or not required and too few.

    Raises UserError if they are required and too few.
    """
    least, gpus = scale.least_workers, scale.gpus_per_worker
    if scale.use_gpu is None:
        return gpus if room(nodes, Share(1, gpus)) >= least else 0.0
    if scale.use_gpu and room(nodes, Share(0, gpus)) < least:
        needed = ceil(least / per_gpu(gpus)) if gpus < 1 else int(least * gpus)
        raise UserError(
            f"{_counted(least, 'worker')} {'needs' if least == 1 else 'need'} {_counted(needed, 'GPU')}; the "
            f"cluster has {sum(node.gpus for node in nodes):g} (--scale.use_gpu false trains on CPU)"
        )
    return gpus if scale.use_gpu else 0.0


def _lack_of_cpus(workers: Workers, nodes: Sequence[Node]) -> str:
    """What is missing for workers whose GPUs are there."""
    suited = [node for node in nodes if not workers.gpu or room([node], Share(0, workers.gpus))]
    have = sum(node.cpus for node in suited)
    need, verb = workers.cpus * workers.least, "needs" if workers.least == 1 else "need"
    where = "the nodes with GPUs have" if len(suited) < len(nodes) else "the cluster has"
    parted = f", but room for {room(suited, workers.share)} of them" if need <= have else ""
    asked = f"{_counted(workers.least, 'worker')} of {workers.cpus} CPUs {verb} {need}"
    return f"{asked}; {where} {have}{parted}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
