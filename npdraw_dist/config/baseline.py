"""Sizes of the baselines. Section `baseline`."""

from typing import Annotated

from pydantic import Field, PositiveInt

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.section import Section

Count = Annotated[int, Field(ge=0)]


def _defaults_by_kind(name: str) -> str:
    return ", ".join(f"{kind} {getattr(KINDS[kind], name)}" for kind in KINDS if getattr(KINDS[kind], name))


class BaselineConfig(Section):
    """Sizes of the baselines; NP-DRAW has none of them. Section `vae` gives budget, rates and likelihood."""

    latents: PositiveInt | None = Field(
        None,
        description="Gaussians of the image (vae), a step (draw) or an object (air); "
        f"if not given, {_defaults_by_kind('latents')}",
    )
    steps: PositiveInt | None = Field(
        None, description=f"draw: glimpses; air: objects; if not given, {_defaults_by_kind('steps')}"
    )
    hidden: PositiveInt = Field(256, description="draw, air: width of the LSTMs")
    width: PositiveInt = Field(64, description="vae: channels of encoder and decoder")
    depth: Count = Field(2, description="vae: residual blocks of encoder and decoder each")
    attention: bool = Field(True, description="draw: selective read and write; false sees the whole image")
    read: PositiveInt = Field(5, description="draw: side of the window it reads, in samples")
    write: PositiveInt = Field(5, description="draw: side of the window it writes, in samples")
    glimpse: PositiveInt = Field(20, description="air: side of an object's window, in samples")
