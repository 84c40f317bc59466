"""Section `init`: the trained model that a run starts from (fine-tuning). Symbol of the paper: K parts."""

from typing import Annotated

from pydantic import Field

from npdraw_dist.config.section import NO_EFFECT_ON_RESULT, Section

Count = Annotated[int, Field(ge=0)]


class InitConfig(Section):
    """`config.source_model` reads the model, whose network becomes that of the run."""

    # Its weights decide, not where they lie: `sha256` is compared.
    model: Annotated[str | None, NO_EFFECT_ON_RESULT] = Field(
        None,
        description="a trained model of any kind to start from: a model folder, a run, a URI or an id of the "
        "hub. The run takes its network, and its parts if it has any",
    )
    extend_bank: Count = Field(
        0,
        description="parts that are added to those of init.model, found where the new images fit them badly",
    )
    sha256: str | None = Field(None, description="of the weights of init.model; found by itself")
