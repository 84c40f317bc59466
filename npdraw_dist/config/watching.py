"""Settings of what a person sees of training. Part of section `train`; they change no result."""

from typing import Annotated, Literal

from pydantic import Field

from npdraw_dist.config.section import NO_EFFECT_ON_RESULT, Section


class Watching(Section):
    pictures: Annotated[int, Field(ge=0), NO_EFFECT_ON_RESULT] = Field(
        16,
        description="samples and reconstructions in TensorBoard, at 20 validations of a stage or fewer; 0: "
        "none, as with train.compile",
    )
    track: Annotated[Literal["wandb", "mlflow"] | None, NO_EFFECT_ON_RESULT] = Field(
        None,
        description="also send losses, settings and final numbers to Weights & Biases or MLflow, as the "
        "environment variables of these say",
    )
