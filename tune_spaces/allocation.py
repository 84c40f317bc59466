"""How many trials run at once on the cluster, and the workers of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.placement import Node, most_cpus, room
from npdraw_dist.training.resources import living_nodes, plan_workers
from npdraw_dist.training.workers import Workers, describe_gpus, local_resources, plan_local


@dataclass(frozen=True)
class Allocation:
    """The number of trials at once, and the config of the workers of each."""

    at_once: int
    scale: ScaleConfig

    def __str__(self) -> str:
        gpu = f" and {describe_gpus(self.scale.gpus_per_worker)}" if self.scale.use_gpu else ""
        workers = f"{self.scale.num_workers} worker(s) of {self.scale.cpus_per_worker} CPU(s){gpu}"
        return f"{self.at_once} at once, each {workers}"


def divide_cluster(scale: ScaleConfig, wanted: int | None, trials: int) -> Allocation:
    """Divides the cluster among at most `wanted` of `trials` trials at once; all that fit if None.

    Without scale.cpus_per_worker the trials at once share all CPUs of the nodes that have what a worker
    needs. Raises UserError if not even one trial fits, or fewer than `wanted`.
    """
    single = plan_workers(scale.model_copy(update={"cpus_per_worker": scale.cpus_per_worker or 1}))
    return _divide(scale, single, living_nodes(), wanted, trials)


def divide_machine(scale: ScaleConfig, wanted: int | None, trials: int) -> Allocation:
    """`divide_cluster` of a Ray that this machine alone would start; starts nothing."""
    single = plan_local(scale.model_copy(update={"cpus_per_worker": scale.cpus_per_worker or 1}))
    return _divide(scale, single, [Node.of(local_resources(scale))], wanted, trials)


def _divide(
    scale: ScaleConfig, single: Workers, nodes: Sequence[Node], wanted: int | None, trials: int
) -> Allocation:
    fit = max(room(nodes, single.share) // scale.most_workers, 1)
    if wanted is not None and wanted > fit:
        raise UserError(
            f"--max-concurrent-trials is {wanted}, but the cluster fits {fit} at once, each {single}"
        )
    at_once = min(wanted or fit, trials)
    cpus = scale.cpus_per_worker or max(most_cpus(nodes, at_once * scale.most_workers, single.gpus), 1)
    return Allocation(at_once, scale.model_copy(update={"cpus_per_worker": cpus, "use_gpu": single.gpu}))
