"""Section `scale`: how a run is spread over a machine or a cluster. It does not change the result."""

import re
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PositiveInt

from npdraw_dist.config.section import Section

Count = Annotated[int, Field(ge=0)]


def _worker_count(value: object) -> int | str:
    """0, 4, "1:2" for a number that follows the cluster, or "0:2". A flag comes as text."""
    found = re.fullmatch(r"(?:0|[1-9][0-9]*)(:[1-9][0-9]*)?", str(value), re.ASCII)
    if found is None:
        raise ValueError(f"scale.num_workers is {value!r}; give a number such as 2, or a range such as 1:2")
    return str(value) if found[1] else int(str(value))


WorkerCount = Annotated[int | str, BeforeValidator(_worker_count)]


def _gpu_count(value: object) -> object:
    """A share of a GPU, from 0.01 on, or a whole number."""
    try:
        number = float(str(value))
    except ValueError:
        return value  # pydantic says that it is no number
    if not 0.01 <= number <= 1 and not (number > 1 and number.is_integer()):
        raise ValueError(
            f"scale.gpus_per_worker is {value}; give a share of a GPU such as 0.25, or a whole number"
        )
    return value


GpuCount = Annotated[float, BeforeValidator(_gpu_count)]


class ScaleConfig(Section):
    num_workers: WorkerCount = Field(
        1,
        description="training workers; a range such as 1:2 lets their number follow the cluster; 0: all work "
        "is done in this process, without Ray, as for a debugger; 0:2: so, unless RAY_ADDRESS or a job names "
        "a cluster, which then has 1:2",
    )
    use_gpu: bool | None = Field(
        None, description="GPUs for the workers; if not given, if there are enough of them"
    )
    gpus_per_worker: GpuCount = Field(
        1.0,
        description="GPUs of a worker, if it has any; small models can share one: 0.25 puts four workers, "
        "or four trials, on a GPU (a share is rounded up to 1/n)",
    )
    cpus_per_worker: PositiveInt | None = Field(
        None, description="if not given, the workers share all CPUs of the nodes that they can be on"
    )
    max_failures: int = Field(
        3, ge=-1, description="failures in a row without a new checkpoint that a stage survives; -1: no limit"
    )
    wait_s: Count = Field(20, description="seconds to wait for nodes to join if there are too few")
    timeout_s: PositiveInt = Field(300, description="seconds after which a silent worker counts as failed")

    @property
    def here(self) -> bool:
        """Whether all work is done in the process of the command."""
        return self.num_workers == 0

    def placed(self, cluster: bool) -> Self:
        """With a range that begins at 0 as what it means with or without a cluster.

        Settings of the size of a worker ask for workers.
        """
        if not str(self.num_workers).startswith("0:"):
            return self
        sized = self.cpus_per_worker is not None or self.gpus_per_worker != 1
        workers = f"{self.least_workers}:{self.most_workers}" if cluster or sized else 0
        return self.model_copy(update={"num_workers": workers})

    @property
    def least_workers(self) -> int:
        """On Ray."""
        return max(int(str(self.num_workers).split(":")[0]), 1)

    @property
    def most_workers(self) -> int:
        """On Ray."""
        return int(str(self.num_workers or 1).split(":")[-1])
