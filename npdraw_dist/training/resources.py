"""What a run needs from the cluster: workers."""

import os
import shutil
import time
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError

POLL_S = 1.0


def start_bookkeeper(actor: type) -> Any:
    """An actor that keeps notes for this process: on its node; if it dies, it starts again without notes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(actor)
    return remote.options(scheduling_strategy=here).remote()


@dataclass(frozen=True)
class Workers:
    """From `least` to `most` training workers with `cpus` CPUs each; gpu: and one GPU each."""

    least: int
    most: int
    cpus: int
    gpu: bool

    @property
    def asked(self) -> int | tuple[int, int]:
        """As Ray Train's ScalingConfig takes it: a range makes the run elastic."""
        return self.least if self.least == self.most else (self.least, self.most)

    def __str__(self) -> str:
        count = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        each = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}" + (" and a GPU" if self.gpu else "")
        return f"{count} worker{'s' if self.most > 1 else ''} of {each}"


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler on this machine."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def require_compiler(needed: bool) -> None:
    """Raises UserError if train.compile is set (`needed`) and there is no C++ compiler."""
    if needed and not has_compiler():
        raise UserError("train.compile needs a C++ compiler: install g++, or name one in CXX")


def local_cpus(scale: ScaleConfig) -> int:
    """The CPUs that a Ray of this machine alone is given: a slot for each worker, and one for reading."""
    return max(os.cpu_count() or 1, scale.least_workers + 1)


def local_resources(scale: ScaleConfig) -> dict[str, float]:
    """What a Ray of this machine alone will have, as `ray.nodes` tells it."""
    return {"CPU": float(local_cpus(scale)), "GPU": float(torch.cuda.device_count())}


def is_local() -> bool:
    """Whether this process will start a Ray of its own: none runs, and no cluster is named."""
    return not os.environ.get("RAY_ADDRESS") and not ray.is_initialized()


def plan_local(scale: ScaleConfig, reading: bool = False) -> Workers:
    """`plan_workers` of a Ray that this machine alone would start; starts nothing. Raises UserError."""
    have = local_resources(scale)
    try:
        return _fit(scale, reading, [have])
    except UserError as error:
        raise UserError(f"{error}; nodes: {_listed([('this machine', have)])}") from None


def require_gpu(scale: ScaleConfig) -> None:
    """Raises UserError if scale.use_gpu is true, and this machine, of which alone Ray will be, has no GPU."""
    if is_local():
        plan_local(scale.model_copy(update={"num_workers": 1, "cpus_per_worker": None}))


def plan_workers(scale: ScaleConfig, reading: bool = False) -> Workers:
    """The workers that fit the cluster. If it is too small, asks for nodes and waits up to scale.wait_s.

    reading: leave one CPU for the read tasks of a stream, which could not run otherwise. Raises UserError
    that names what is missing and what the cluster has.
    """
    can_grow = bool(os.environ.get("RAY_ADDRESS"))  # no node joins a Ray that this process started
    deadline = time.monotonic() + scale.wait_s * can_grow
    asked = False
    while True:
        nodes = [(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]
        try:
            workers = _fit(scale, reading, [have for _, have in nodes])
            if asked:
                request_resources(bundles=[])  # Ray Train makes its own request
            return workers
        except UserError as error:
            if time.monotonic() >= deadline:
                raise UserError(f"{error}; nodes: {_listed(nodes)}") from None
        if not asked:  # only an autoscaler reacts to it
            bundle = {"CPU": scale.cpus_per_worker or 1, **({"GPU": 1} if scale.use_gpu else {})}
            request_resources(bundles=[bundle] * scale.least_workers)
            asked = True
        time.sleep(POLL_S)


def _fit(scale: ScaleConfig, reading: bool, nodes: list[dict[str, float]]) -> Workers:
    """The workers that fit on nodes with these resources. Raises UserError if none do."""
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    least, most = scale.least_workers, scale.most_workers
    gpu = gpus >= least if scale.use_gpu is None else scale.use_gpu
    if gpu and gpus < least:
        raise UserError(
            f"{_counted(least, 'worker')} {'needs' if least == 1 else 'need'} {_counted(least, 'GPU')}; the "
            f"cluster has {gpus} (--scale.use_gpu false trains on CPU)"
        )
    each = scale.cpus_per_worker or even_cpus(nodes, most, reading) or even_cpus(nodes, least, reading) or 1
    if sum(have // each for have in cpus) < least or each * least > sum(cpus) - reading:
        beside = " beside the one that reads the stream" if reading else ""
        raise UserError(
            f"{_counted(least, 'worker')} of {each} CPUs {'needs' if least == 1 else 'need'} {each * least}; "
            f"the cluster has {sum(cpus) - reading}{beside} (lower --scale.num_workers or "
            "--scale.cpus_per_worker, or raise --scale.wait_s where nodes are still joining)"
        )
    return Workers(least, most, each, gpu)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def even_cpus(nodes: list[dict[str, float]], count: int, reading: bool = False) -> int:
    """The most CPUs that `count` workers can each have, each on one of the `nodes`; 0 if there are too few.

    reading: leave a CPU to the read tasks of a stream.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    most = (sum(cpus) - reading) // count
    return next((each for each in range(most, 0, -1) if sum(have // each for have in cpus) >= count), 0)


def _listed(nodes: list[tuple[str, dict[str, float]]]) -> str:
    """`10.0.0.1: 8 CPUs, 1 GPU` of every node."""
    found = []
    for address, have in sorted(nodes, key=itemgetter(0)):
        counts = [(have.get("CPU", 0), "CPU"), (have.get("GPU", 0), "GPU")]
        each = [f"{n:g} {what}{'s' if n != 1 else ''}" for n, what in counts if n or what == "CPU"]
        found.append(f"{address}: {', '.join(each)}")
    return "; ".join(found) or "no node"
