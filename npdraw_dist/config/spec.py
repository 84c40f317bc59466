"""The settings from which the network of a model folder is rebuilt, without its training settings.

A spec inherits its settings from sections of the config. In the entry `spec` of config.json, most of them
are keys without the name of their section.
"""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from npdraw_dist.config.data import Binarize, DataConfig, GridConfig
from npdraw_dist.config.networks import (
    AUTHORS_HEAD_WIDTH,
    AUTHORS_MLP,
    BaselineConfig,
    ImageNetwork,
    PriorConfig,
    PriorNetwork,
    VAENetwork,
)
from npdraw_dist.config.registry import KINDS, ORDERS, SOURCES, KindName, OrderName, SourceName
from npdraw_dist.config.schema import OF_PARTS, EvalConfig, Experiment
from npdraw_dist.config.section import Section, size_of
from npdraw_dist.core.grid import Grid


class SplitSpec(Section):
    """The settings that separated a model's training images from the held-out images.

    inputs: the digest of the training images (`data.parquet.digest_of`); None if it is unknown.
    """

    source: SourceName
    seed: int = Field(ge=0)
    fraction: float
    valid_fraction: float
    test_fraction: float
    fit: Literal["pad", "crop"] = "pad"
    background: str = "white"
    split_by: Literal["face", "character", "variant"] = "face"
    inputs: str | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> "SplitSpec":
        names = set(cls.model_fields) & set(DataConfig.model_fields)
        return cls(seed=experiment.seed, **experiment.data.model_dump(include=names))

    def data(self, image_shape: tuple[int, int, int]) -> DataConfig:
        """The data settings for images (C, H, W), without a path."""
        own_size = SOURCES[self.source].shape is None
        sizes = {"channels": image_shape[0], "image_size": size_of(*image_shape[1:])} if own_size else {}
        return DataConfig(**self.model_dump(exclude={"seed", "inputs"}), **sizes)


class Spec(ImageNetwork):
    """The part of a spec that all kinds of models share. image_shape: (C, H, W). Sizes are in pixels.

    temperature, guidance: the defaults of samples. data: how the model's training images were separated from
    held-out images; None if the model was not trained by a run.
    """

    temperature: PositiveFloat = EvalConfig().temperature
    guidance: NonNegativeFloat = EvalConfig().guidance

    data: SplitSpec | None = None
    kind: KindName
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    binarize: Binarize

    @staticmethod
    def shared(experiment: Experiment) -> dict[str, Any]:
        return {
            "image_shape": experiment.data.shape,
            "binarize": experiment.data.binarize,
            "temperature": experiment.eval.temperature,
            "guidance": experiment.eval.guidance,
            "data": SplitSpec.of(experiment),
        }


class PriorSpec(PriorNetwork):
    """The settings of the prior's network, with every width as a number."""

    head_width: PositiveInt
    mlp: PositiveInt

    @classmethod
    def of(cls, prior: PriorConfig, authors: bool = False) -> "PriorSpec":
        network = prior.model_dump(include=set(PriorNetwork.model_fields))
        head_width, mlp = prior.width // prior.attention_heads, 4 * prior.width
        if authors:
            head_width, mlp = AUTHORS_HEAD_WIDTH, AUTHORS_MLP
        return cls(**network, head_width=head_width, mlp=mlp)


class ModelSpec(Spec, GridConfig, VAENetwork):
    """The spec of a model that draws parts. parts: K. steps: T."""

    kind: Literal["npdraw", "authors"] = "npdraw"
    parts: PositiveInt
    steps: PositiveInt
    order: OrderName
    prior: PriorSpec

    @property
    def authors(self) -> bool:
        """Whether its networks follow the authors' released code."""
        return self.kind == "authors"

    @property
    def grid(self) -> Grid:
        return self.of_canvas(self.image_shape, centred=self.authors)

    @property
    def aligned(self) -> bool:
        """Whether step t of a parse is place t."""
        return ORDERS[self.order]

    @property
    def where_given(self) -> bool:
        """Whether the step determines *where*, since step t is place t in every drawing."""
        return self.aligned and not self.authors

    @classmethod
    def of(cls, experiment: Experiment) -> "ModelSpec":
        return cls(
            **cls.shared(experiment),
            kind=experiment.model.kind,
            parts=experiment.bank.size,
            steps=experiment.steps,
            order=experiment.parse.order,
            prior=PriorSpec.of(experiment.prior, experiment.by_authors),
            **experiment.grid.model_dump(),
            **experiment.vae.model_dump(include=set(VAENetwork.model_fields)),
        )


class BaselineSpec(Spec, BaselineConfig):
    """The spec of a baseline. prior, grid: None for kinds without them (`baselines/contract.py`)."""

    latents: PositiveInt
    steps: PositiveInt
    prior: PriorSpec | None = None
    grid: GridConfig | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> "BaselineSpec":
        kind, own = experiment.model.kind, KINDS[experiment.model.kind]
        assert not experiment.has_parts
        given = {name: size for name, size in experiment.baseline.model_dump().items() if size is not None}
        return cls(
            **cls.shared(experiment),
            kind=kind,
            **experiment.vae.model_dump(include=set(ImageNetwork.model_fields)),
            prior=PriorSpec.of(experiment.prior) if own.has_sequence else None,
            grid=experiment.grid if own.has_places else None,
            **{"latents": own.default_latents, "steps": own.default_steps, **given},
        )


def spec_type(kind: str) -> type[ModelSpec] | type[BaselineSpec]:
    return ModelSpec if kind in OF_PARTS else BaselineSpec


def spec_of(experiment: Experiment) -> ModelSpec | BaselineSpec:
    """The spec of the network that an experiment trains."""
    return spec_type(experiment.model.kind).of(experiment)
