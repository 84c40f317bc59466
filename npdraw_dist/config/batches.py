"""The global batch of a training step: how it is cut for the workers, and which learning rate it takes.

Part of section `train`.
"""

import math
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from npdraw_dist.config.section import Section


class BatchSettings(Section):
    batch_size: PositiveInt = Field(128, description="global batch in images, over all workers")
    micro_batch: PositiveInt = Field(
        64,
        description="most images of one forward pass; noise is seeded by its index. It is lowered where a "
        "worker would have none, and a resumed run may change it",
    )
    rate_batch: PositiveInt | None = Field(
        None,
        description="global batch for which the learning rates are given; another batch multiplies them by "
        "sqrt(batch / rate_batch). If not given, the rates hold for every batch",
    )
    shuffle_mb: Annotated[float, Field(ge=0)] = Field(
        64.0,
        description="streamed images are shuffled within windows of so many MB, at least 4,096 images; the "
        "workers hold three windows in all. Larger ones mix sets better that are sorted, as by font",
    )

    @property
    def rate_scale(self) -> float:
        """What the peak learning rates are multiplied by.

        Adam divides a gradient by its own size, which is mostly noise. So at equal images, k times the batch
        gives the same random walk with sqrt(k) times the rate: the square-root scaling rule of Malladi, Lyu,
        Panigrahi and Arora 2022, "On the SDEs and scaling rules for adaptive gradient algorithms". It changes
        Adam's decays and epsilon too; here they stay.
        """
        return 1.0 if self.rate_batch is None else math.sqrt(self.batch_size / self.rate_batch)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size > self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"train.micro_batch ({self.micro_batch}) must divide train.batch_size ({self.batch_size})"
            )
        return self


def largest_micro_batch(batch_size: int, most: int) -> int:
    """The largest micro-batch up to `most` that divides a batch."""
    return max(size for size in range(1, min(batch_size, most) + 1) if batch_size % size == 0)
