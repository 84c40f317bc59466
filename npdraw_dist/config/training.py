"""Sections `train` and `scale`: how every stage is trained, and how a run is spread over machines."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt

from npdraw_dist.config.section import Count, NonNegative, RunHalf, Share

Precision = Literal["auto", "float32", "bfloat16"]


class TrainRun(RunHalf):
    micro_batch: PositiveInt = Field(
        64, description="largest number of images in one forward pass of a worker"
    )
    precision: Precision = Field(
        "auto",
        description="on a GPU: auto takes bfloat16 if the GPU has it natively, else float32; a CPU: float32",
    )
    compile: bool = Field(
        False, description="torch.compile the networks; takes a minute at the start and a C++ compiler"
    )


class TrainConfig(TrainRun):
    # Steps
    batch_size: PositiveInt = Field(128, description="global batch in images, over all workers")
    rate_batch: PositiveInt | None = Field(
        None,
        description="global batch for which the learning rates are given; another batch multiplies them by "
        "sqrt(batch / rate_batch). If not given, the rates hold for every batch",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw; or muon, which trains matrices of at least 16 x 16 by Muon, the rest by AdamW, "
        "at the same rates",
    )
    # Augmentation: a move is drawn uniformly between minus and plus its limit, and the moved image is parsed
    augmented: Share = Field(
        0.0, description="share of the training images that are moved, for every kind of model"
    )
    shift: NonNegative = Field(0.0, description="limit of a moved image's shift along each axis, in pixels")
    rotate: float = Field(0.0, ge=0, le=180, description="limit of its rotation, in degrees")
    stretch: NonNegative = Field(0.0, description="limit of the logarithm of its stretching along each axis")
    shear: NonNegative = Field(0.0, description="limit of its shear, the slope of an upright line")
    mirror: Share = Field(0.0, description="chance that it is mirrored, left to right")
    # Validation, and what a stage passes on
    eval_every_images: PositiveInt = Field(
        20_000, description="validation and checkpoint interval; at least a thousandth of the budget"
    )
    eval_images: PositiveInt = Field(512, description="largest number of validation images")
    select: Literal["last", "best"] = Field(
        "best",
        description="the weights that a stage passes on: those with the best validation, or the last ones",
    )
    average_images: NonNegative = Field(
        0.0,
        description="validate and pass on an exponential moving average of the weights over about so many "
        "images; 0: the weights themselves",
    )
    patience: Count = Field(
        3,
        description="a stage ends early after so many validations far below the best one, if none between "
        "came near the best; a validation that is better than the one before does not count, nor does one "
        "with relaxed draws; 0, or train.select last: never",
    )

    def made(self) -> dict[str, Any]:
        values = super().made()
        if self.select == "last":  # the last checkpoint does not depend on when the others are made
            del values["eval_every_images"]
        return values

    @property
    def rate_scale(self) -> float:
        """The factor of the peak learning rates.

        The square-root scaling rule of Malladi, Lyu, Panigrahi and Arora 2022, "On the SDEs and scaling rules
        for adaptive gradient algorithms"; Adam's decays and epsilon, which it changes too, stay.
        """
        return 1.0 if self.rate_batch is None else math.sqrt(self.batch_size / self.rate_batch)

    @property
    def whole_pixels(self) -> bool:
        """Whether a move takes the nearest pixel, so that mirrored and shifted images stay sharp."""
        return not (self.rotate or self.stretch or self.shear)


def _worker_count(value: object) -> int | str:
    """0, 4, "1:2" for a number that follows the cluster, or "0:2". A flag comes as text."""
    found = re.fullmatch(r"(?:0|[1-9][0-9]*)(:[1-9][0-9]*)?", str(value), re.ASCII)
    if found is None:
        raise ValueError(f"scale.num_workers is {value!r}; give a number such as 2, or a range such as 1:2")
    return str(value) if found[1] else int(str(value))


class ScaleConfig(RunHalf):
    """How a run is spread over processes and machines."""

    num_workers: Annotated[int | str, BeforeValidator(_worker_count)] = Field(
        1,
        description="0: this process, without Ray, as for a debugger; 2: so many Ray workers; 1:2: Ray "
        "workers whose number follows the cluster; 0:2: this process, but 1:2 where RAY_ADDRESS or a job "
        "names a cluster",
    )
    use_gpu: bool | None = Field(
        None, description="whether workers have GPUs; if not given, they do if there are enough GPUs"
    )
    gpus_per_worker: float = Field(
        1.0,
        ge=0.01,
        le=1,
        description="the share of a GPU that a worker takes; 0.25 puts four workers, or four trials, of a "
        "small model on a GPU (a share is rounded up to 1/n)",
    )
    cpus_per_worker: PositiveInt | None = Field(
        None,
        description="CPUs of each Ray worker; if not given, the workers share all CPUs of the nodes that fit"
        " them",
    )
    max_failures: int = Field(
        3,
        ge=-1,
        description="failures without a new checkpoint between them that a stage survives; -1: no limit",
    )
    wait_s: Count = Field(20, description="seconds to wait for nodes to join if there are too few")
    timeout_s: PositiveInt = Field(300, description="seconds after which a silent worker counts as failed")

    @property
    def here(self) -> bool:
        """Whether all work is done in the process of the command."""
        return self.num_workers == 0

    def placed(self, cluster: bool) -> Self:
        """A range `0:N` resolved: in this process, or `1:N` with a cluster or with sizes of a worker."""
        if not str(self.num_workers).startswith("0:"):
            return self
        sized = self.cpus_per_worker is not None or self.gpus_per_worker != 1
        workers = f"{self.least_workers}:{self.most_workers}" if cluster or sized else 0
        return self.model_copy(update={"num_workers": workers})

    @property
    def least_workers(self) -> int:
        return max(int(str(self.num_workers).split(":")[0]), 1)

    @property
    def most_workers(self) -> int:
        return int(str(self.num_workers or 1).split(":")[-1])
