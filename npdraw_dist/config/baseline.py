"""Sizes of the baselines. Section `baseline`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.section import Section

Count = Annotated[int, Field(ge=0)]
# A flag comes as text, which a Literal of numbers would not take.
Cell = Annotated[
    Literal[2, 4, 8], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)
]


def _defaults_by_kind(name: str) -> str:
    return ", ".join(f"{kind} {getattr(KINDS[kind], name)}" for kind in KINDS if getattr(KINDS[kind], name))


class BaselineConfig(Section):
    """Sizes of the baselines; NP-DRAW has none of them. Section `vae` gives budget, rates and likelihood."""

    latents: PositiveInt | None = Field(
        None,
        description="Gaussians of the image (vae, vamp, flow), a step (draw) or an object (air); "
        "numbers of a code (vqvae); "
        f"if not given, {_defaults_by_kind('latents')}",
    )
    steps: PositiveInt | None = Field(
        None, description=f"draw: glimpses; air: objects; if not given, {_defaults_by_kind('steps')}"
    )
    hidden: PositiveInt = Field(256, description="draw, air: width of the LSTMs; flow: of its layers")
    width: PositiveInt = Field(64, description="vae, vamp, flow, vqvae: channels of encoder and decoder")
    depth: Count = Field(2, description="vae, vamp, flow, vqvae: residual blocks of encoder and decoder each")
    pseudo_inputs: PositiveInt = Field(
        100,
        description="vamp: learned images whose posteriors are mixed as prior; each step encodes all",
    )
    flow_layers: PositiveInt = Field(6, description="flow: coupling layers of the prior")
    codes: PositiveInt = Field(64, description="vqvae: vectors of the codebook, the counterpart of bank.size")
    cell: Cell = Field(4, description="vqvae: side in pixels of the cell that one code describes: 2, 4 or 8")
    quantise: Literal["drawn", "nearest"] = Field(
        "drawn",
        description="vqvae: a code is drawn, by a softmax of distances with a learned temperature, or is the "
        "nearest one, as in the paper",
    )
    commitment: Annotated[float, Field(ge=0)] = Field(
        0.25, description="vqvae with nearest codes: weight of the encoder's distance to its code"
    )
    attention: bool = Field(True, description="draw: selective read and write; false sees the whole image")
    read: PositiveInt = Field(5, description="draw: side of the window it reads, in samples")
    write: PositiveInt = Field(5, description="draw: side of the window it writes, in samples")
    glimpse: PositiveInt = Field(20, description="air: side of an object's window, in samples")
