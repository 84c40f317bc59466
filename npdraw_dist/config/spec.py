"""What a model folder must know to rebuild its network, and nothing of where it was trained."""

from typing import Literal

from pydantic import PositiveInt

from npdraw_dist.config.registry import KINDS, KindName, LikelihoodName
from npdraw_dist.config.schema import (
    Count,
    Experiment,
    Heads,
    Order,
    Section,
    Stem,
)
from npdraw_dist.core.grid import Grid


class PriorSpec(Section):
    depth: PositiveInt
    width: PositiveInt
    attention_heads: PositiveInt
    head_width: PositiveInt
    mlp: PositiveInt
    dropout: float
    heads: Heads
    stem: Stem = "cumulative"


class ModelSpec(Section):
    """Shapes and widths of an `NPDraw`. Sizes are in pixels."""

    format: Literal[1] = 1
    kind: Literal["npdraw"] = "npdraw"
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    downscale: PositiveInt
    patch: PositiveInt
    stride: PositiveInt
    parts: PositiveInt
    steps: PositiveInt
    order: Order
    likelihood: LikelihoodName
    binarize: Literal["none", "dynamic", "threshold"]
    encoder_width: PositiveInt
    encoder_depth: int
    decoder_width: PositiveInt
    decoder_depth: int
    prior: PriorSpec

    @property
    def grid(self) -> Grid:
        _, height, width = self.image_shape
        return Grid(height // self.downscale, width // self.downscale, self.patch, self.stride)

    @property
    def aligned(self) -> bool:
        """True where step t is place t, so that *where* is given."""
        return self.order == "aligned"

    @classmethod
    def of(cls, experiment: Experiment) -> "ModelSpec":
        """The network that an experiment trains."""
        prior, vae = experiment.prior, experiment.vae
        return cls(
            image_shape=experiment.data.shape,
            downscale=experiment.grid.downscale,
            patch=experiment.grid.patch,
            stride=experiment.grid.stride,
            parts=experiment.bank.size,
            steps=experiment.steps,
            order=experiment.parse.order,
            likelihood=vae.likelihood,
            binarize=experiment.data.binarize,
            encoder_width=vae.encoder_width,
            encoder_depth=vae.encoder_depth,
            decoder_width=vae.decoder_width,
            decoder_depth=vae.decoder_depth,
            prior=PriorSpec(
                depth=prior.depth,
                width=prior.width,
                attention_heads=prior.attention_heads,
                head_width=prior.head_width or prior.width // prior.attention_heads,
                mlp=prior.mlp or 4 * prior.width,
                dropout=prior.dropout,
                heads=prior.heads,
                stem=prior.stem,
            ),
        )


class BaselineSpec(Section):
    """Shapes and widths of a baseline; each kind reads its own. Sizes are in pixels."""

    format: Literal[1] = 1
    kind: KindName
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    likelihood: LikelihoodName
    binarize: Literal["none", "dynamic", "threshold"]
    latents: PositiveInt
    steps: PositiveInt
    hidden: PositiveInt
    width: PositiveInt
    depth: Count
    attention: bool
    read: PositiveInt
    write: PositiveInt
    glimpse: PositiveInt

    @classmethod
    def of(cls, experiment: Experiment) -> "BaselineSpec":
        """The baseline that an experiment trains."""
        kind, settings = experiment.model.kind, experiment.baseline
        assert kind != "npdraw"
        return cls(
            kind=kind,
            image_shape=experiment.data.shape,
            likelihood=experiment.vae.likelihood,
            binarize=experiment.data.binarize,
            latents=settings.latents or KINDS[kind].latents,
            steps=settings.steps or KINDS[kind].steps,
            **settings.model_dump(exclude={"latents", "steps"}),
        )


def spec_of(experiment: Experiment) -> ModelSpec | BaselineSpec:
    """The network that an experiment trains, of whatever kind."""
    return (ModelSpec if experiment.model.kind == "npdraw" else BaselineSpec).of(experiment)
