"""Sections `train` and `scale`: how every stage is trained, and how a run is spread over machines."""

import math
import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt

from npdraw_dist.config.section import Count, NonNegative, Section, Share

Precision = Literal["auto", "float32", "bfloat16"]


class TrainConfig(Section):
    # Steps
    batch_size: PositiveInt = Field(128, description="global batch in images, over all workers")
    micro_batch: PositiveInt = Field(
        64,
        description="most images of one forward pass of a worker; a resumed run may change it",
    )
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
    precision: Precision = Field(
        "auto",
        description="on a GPU: auto takes bfloat16 if the GPU has it natively, else float32; a CPU: float32",
    )
    # Moved images: each move is drawn uniformly up to its limit, in both directions; the image is parsed anew
    augmented: Share = Field(
        0.0, description="share of the training images that are moved, of every kind of model"
    )
    shift: NonNegative = Field(0.0, description="limit of a moved image's shift, pixels of each axis")
    rotate: float = Field(0.0, ge=0, le=180, description="limit of its rotation, degrees")
    stretch: NonNegative = Field(0.0, description="limit of the logarithm of its stretching, of each axis")
    shear: NonNegative = Field(0.0, description="limit of its shear, the slope of an upright line")
    mirror: Share = Field(0.0, description="chance that it is mirrored, left to right")
    # Validation, and what a stage passes on
    eval_every_images: PositiveInt = Field(
        20_000, description="validation and checkpoint interval; at least a thousandth of the budget"
    )
    eval_images: PositiveInt = Field(512, description="largest number of validation images")
    select: Literal["last", "best"] = Field(
        "best", description="the weights that a stage passes on: those that validated best, or the last ones"
    )
    average_images: NonNegative = Field(
        0.0,
        description="validate and pass on an exponential moving average of the weights, over about so many "
        "images; 0: the weights themselves",
    )
    patience: Count = Field(
        3,
        description="a stage ends before its budget after so many validations that are far below the best "
        "one, none of them near it between; one that is better than the one before does not count, nor do "
        "those of relaxed draws; 0, or train.select last: never",
    )

    @property
    def rate_scale(self) -> float:
        """What the peak learning rates are multiplied by.

        The square-root scaling rule of Malladi, Lyu, Panigrahi and Arora 2022, "On the SDEs and scaling rules
        for adaptive gradient algorithms"; Adam's decays and epsilon, which it changes too, stay.
        """
        return 1.0 if self.rate_batch is None else math.sqrt(self.batch_size / self.rate_batch)

    @property
    def whole_pixels(self) -> bool:
        """Whether moves take the nearest pixel, so that a mirrored, shifted image keeps its sharpness."""
        return not (self.rotate or self.stretch or self.shear)


def _worker_count(value: object) -> int | str:
    """0, 4, "1:2" for a number that follows the cluster, or "0:2". A flag comes as text."""
    found = re.fullmatch(r"(?:0|[1-9][0-9]*)(:[1-9][0-9]*)?", str(value), re.ASCII)
    if found is None:
        raise ValueError(f"scale.num_workers is {value!r}; give a number such as 2, or a range such as 1:2")
    return str(value) if found[1] else int(str(value))


class ScaleConfig(Section):
    """It does not change the result."""

    num_workers: Annotated[int | str, BeforeValidator(_worker_count)] = Field(
        1,
        description="0: this process, without Ray, as for a debugger; 2: so many Ray workers; 1:2: Ray "
        "workers whose number follows the cluster; 0:2: this process, but 1:2 where RAY_ADDRESS or a job "
        "names a cluster",
    )
    use_gpu: bool | None = Field(
        None, description="GPUs for the workers; if not given, if there are enough of them"
    )
    gpus_per_worker: float = Field(
        1.0,
        ge=0.01,
        le=1,
        description="the share of a GPU that a worker has, if it has one; 0.25 puts four workers, or four "
        "trials, of a small model on a GPU (a share is rounded up to 1/n)",
    )
    cpus_per_worker: PositiveInt | None = Field(
        None,
        description="CPUs of each Ray worker; if not given, they share all of the nodes that they can be on",
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
