"""The sections `train` and `scale`, which define how stages train and how a run is spread over machines."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt

from npdraw_dist.config.section import Count, NonNegative, RunHalf, Share

Precision = Literal["auto", "float32", "bfloat16"]


def _micro_batch(value: object) -> int | str:
    """Validates a number of rows above 0, or `auto`. The value of a flag is text."""
    if value == "auto":
        return "auto"
    if re.fullmatch(r"[1-9][0-9]*", str(value), re.ASCII) is None:
        raise ValueError(f"train.micro_batch is {value!r}; give a number above 0, or auto")
    return int(str(value))


class TrainRun(RunHalf):
    micro_batch: Annotated[int | Literal["auto"], BeforeValidator(_micro_batch)] = "auto"
    """largest number of images in one forward pass of a worker, which does not change the result. auto: on
    a GPU, as many as its memory allows, which one step measures; on a CPU, 32"""
    precision: Precision = "auto"
    """number format on a GPU; auto: bfloat16 if the GPU has it natively, else float32. A CPU always uses
    float32"""
    compile: bool = False
    """compile the networks by torch.compile, which needs a C++ compiler and takes a minute"""


class TrainConfig(TrainRun):
    # Steps
    batch_size: PositiveInt = 128
    """global batch in images, over all workers"""
    rate_batch: PositiveInt | None = None
    """global batch for which the learning rates are given; for another batch they are multiplied by
    sqrt(batch / rate_batch). Default: the rates hold for every batch"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: AdamW trains all parameters; muon: Muon trains matrices of at least 16 x 16, and AdamW the rest,
    at the same learning rates"""
    # A change is drawn uniformly between minus and plus its limit, and the augmented image is parsed.
    augmented: Share = 0.0
    """share of the training images that are augmented"""
    shift: NonNegative = 0.0
    """largest shift of an augmented image along each axis, in pixels"""
    rotate: float = Field(0.0, ge=0, le=180)
    """largest rotation of an augmented image, in degrees"""
    stretch: NonNegative = 0.0
    """largest logarithm of the factor by which an augmented image is stretched"""
    shear: NonNegative = 0.0
    """largest shear of an augmented image, the slope of an upright line"""
    mirror: Share = 0.0
    """probability that an augmented image is mirrored, left to right"""
    # Validation, and which weights a stage passes on
    eval_every_images: PositiveInt = 20_000
    """images between two validations, each with a checkpoint; at least a thousandth of the budget"""
    eval_images: PositiveInt = 512
    """largest number of validation images"""
    select: Literal["last", "best"] = "best"
    """which weights a stage passes on. best: the weights with the best validation; last: the last weights"""
    average_images: NonNegative = 0.0
    """number of images over which an exponential moving average of the weights is taken; the average is
    validated and passed on. 0: the weights themselves are validated and passed on"""
    patience: Count = 3
    """a stage ends early after this number of validations that are far worse than the best; one near the best
    starts the count again. A validation that is better than the one before, or has relaxed draws, is not
    counted. With 0, or with train.select last, no stage ends early"""

    def made(self) -> dict[str, Any]:
        values = super().made()
        if self.select == "last":  # the last weights do not depend on earlier validations
            del values["eval_every_images"]
        return values

    @property
    def rate_scale(self) -> float:
        """The factor that multiplies the peak learning rates.

        It follows the square-root scaling rule of Malladi, Lyu, Panigrahi and Arora 2022, "On the SDEs and
        scaling rules for adaptive gradient algorithms", but leaves Adam's decays and epsilon unchanged.
        """
        return 1.0 if self.rate_batch is None else math.sqrt(self.batch_size / self.rate_batch)

    @property
    def whole_pixels(self) -> bool:
        """Whether images are only shifted or mirrored, by the nearest pixel, so that they stay sharp."""
        return not (self.rotate or self.stretch or self.shear)


def _worker_count(value: object) -> int | str:
    """Validates a number of workers such as 0, 4, "1:2" or "0:2". The value of a flag is text."""
    found = re.fullmatch(r"(?:0|[1-9][0-9]*)(:[1-9][0-9]*)?", str(value), re.ASCII)
    if found is None:
        raise ValueError(f"scale.num_workers is {value!r}; give a number such as 2, or a range such as 1:2")
    return str(value) if found[1] else int(str(value))


class ScaleConfig(RunHalf):
    """How a run is spread over processes and machines."""

    num_workers: Annotated[int | str, BeforeValidator(_worker_count)] = 1
    """number of Ray workers. 0: this process does all work without Ray, which suits a debugger. 1:2: the
    cluster chooses a number in this range. 0:2: as 1:2 if RAY_ADDRESS or a job names a cluster, else as 0"""
    use_gpu: bool | None = None
    """whether workers have GPUs; by default they do if there are enough GPUs"""
    gpus_per_worker: float = Field(1.0, ge=0.01, le=1)
    """share of a GPU that a worker takes, rounded up to 1/n; 0.25 puts four workers or trials of a small
    model on a GPU"""
    cpus_per_worker: PositiveInt | None = None
    """CPUs of each Ray worker; default: the workers share all CPUs of the nodes that fit them"""
    max_failures: int = Field(3, ge=-1)
    """number of failures, without a new checkpoint between them, that a stage survives; -1: no limit"""
    wait_s: Count = 20
    """seconds to wait for more nodes if there are too few"""
    timeout_s: PositiveInt = 300
    """seconds after which a silent worker counts as failed"""

    @property
    def in_process(self) -> bool:
        """Whether the process of the command does all the work."""
        return self.num_workers == 0

    @property
    def sized(self) -> bool:
        """Whether a worker has a size that the user chose."""
        return self.cpus_per_worker is not None or self.gpus_per_worker != 1

    def placed(self, cluster: bool) -> Self:
        """Resolves a range `0:N` to `1:N` on a cluster or if a worker's size is set, and otherwise to 0."""
        if not str(self.num_workers).startswith("0:"):
            return self
        workers = f"{self.least_workers}:{self.most_workers}" if cluster or self.sized else 0
        return self.model_copy(update={"num_workers": workers})

    @property
    def least_workers(self) -> int:
        return max(int(str(self.num_workers).split(":")[0]), 1)

    @property
    def most_workers(self) -> int:
        return int(str(self.num_workers or 1).split(":")[-1])
