"""Settings of which weights a training stage passes on, and when it ends. Part of section `train`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from npdraw_dist.config.section import NO_EFFECT_ON_RESULT, Section


class Selection(Section):
    keep_checkpoints: Annotated[PositiveInt, NO_EFFECT_ON_RESULT] = Field(
        2, description="checkpoints kept: those that validated best; the last one is kept besides"
    )
    select: Literal["last", "best"] = Field(
        "best", description="the weights that a stage passes on: those that validated best, or the last ones"
    )
    average_images: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="validate and pass on an exponential moving average of the weights, over about so many "
        "images; 0: the weights themselves",
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        3,
        description="a stage ends before its budget after so many validations that are far below the best "
        "one, none of them near it between; one that is better than the one before does not count, nor do "
        "those of relaxed draws; 0, or train.select last: never",
    )
