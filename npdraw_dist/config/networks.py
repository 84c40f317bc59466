"""Sections `prior`, `vae`, `baseline`: the networks, and how each is trained.

The settings of a section that make the network are in a class of their own, which model files state too
(`config/spec.py`). Symbols of the paper: T steps, K parts, L places. Budgets are in images.
"""

import re
from argparse import SUPPRESS
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from npdraw_dist.config.registry import LikelihoodName
from npdraw_dist.config.section import Count, NonNegative, Positive, RunHalf, Section

TableKind = Literal["joint", "factorised", "pixels"]
BlockKind = Literal["transformer", "lstm"]


@dataclass(frozen=True)
class Condition:
    """A kind of condition. tokens: before the first step, A. entries: what its vocabulary holds.

    asked: how people ask for it. `core/vocabulary.py` has its class of vocabularies.
    """

    tokens: int
    entries: str
    asked: str


CONDITIONS = {"class": Condition(1, "classes", "by class"), "words": Condition(8, "words", "in words")}
if TYPE_CHECKING:
    ConditionName = str
else:
    ConditionName = Literal["none", *CONDITIONS]
HARD_SHARE = 0.33  # least share of the VAE's budget, at its end, with hard draws


class PriorVocabulary(RunHalf):
    """What a run finds in its data, which decide it, or takes from `init.model`."""

    vocabulary: Annotated[tuple[str, ...], SUPPRESS] = Field(
        (), description="names of the classes, or words and pieces of words, of the training images"
    )


class PriorNetwork(PriorVocabulary):
    """The network of the prior (paper section 3.1)."""

    depth: PositiveInt = Field(4, description="blocks")
    width: PositiveInt = Field(128, description="channels of a token")
    attention_heads: PositiveInt = Field(4, description="attention heads of a block")
    dropout: float = Field(0.0, ge=0, lt=1, description="after attention or LSTM, and after the MLP")
    network: BlockKind = Field(
        "transformer", description="how the prior sees the steps before: attention, or the state of an LSTM"
    )
    heads: Literal["chained", "independent"] = Field(
        "chained",
        description="chained: p(what) depends on where; independent: both depend on the hidden state alone",
    )
    table: TableKind = Field(
        "pixels",
        description="how a part at a place is embedded. pixels: from the part's pixels alone, so that "
        "another bank can replace it; joint: L x K x width free numbers; factorised: a product of (L + K) x "
        "4 x width. A vqvae, whose codes have no pixels, takes joint",
    )
    condition: ConditionName = Field(
        "none", description="what the prior is conditioned on: nothing, the image's class, or words about it"
    )

    @property
    def condition_tokens(self) -> int:
        """Tokens before the first step, A."""
        return 0 if self.condition == "none" else CONDITIONS[self.condition].tokens

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.attention_heads:
            raise ValueError("prior.attention_heads must divide prior.width")
        return self


class PriorConfig(PriorNetwork):
    images: PositiveInt = Field(60_000, description="training budget in images")
    plain_images: Count = Field(
        0, description="final images of this stage's budget that are trained without augmentation"
    )
    learning_rate: Positive = Field(2e-3, description="peak of Adam's rate")


class ImageNetwork(Section):
    """Encoder and decoder of every kind of model."""

    likelihood: LikelihoodName = Field("bernoulli", description="p(x|z)")
    components: PositiveInt = Field(10, description="components of likelihood logistic_mixture")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="in encoder and decoder of every kind: in residual blocks, or on what an LSTM reads and "
        "writes; the authors' networks have none",
    )


def _latents(value: object) -> int | str:
    """16, or "map:8". A flag comes as text."""
    found = re.fullmatch(r"(map:)?(0|[1-9][0-9]*)", str(value), re.ASCII)
    if found is None or str(value) == "map:0":
        raise ValueError(f"vae.latents is {value!r}; give a number such as 16, or a map such as map:8")
    return str(value) if found[1] else int(str(value))


class VAENetwork(ImageNetwork):
    """Posterior, decoder and likelihood of NP-DRAW (paper section 3.2)."""

    encoder_width: PositiveInt = Field(64, description="channels of the posterior")
    decoder_width: PositiveInt = Field(64, description="channels of the decoder")
    decoder_depth: Count = Field(2, description="residual blocks of the decoder")
    latents: Annotated[int | str, BeforeValidator(_latents)] = Field(
        0,
        description="Gaussians for details that parts cannot express; the canvas alone still decodes. 16: so"
        " many for the image; map:8: so many for each 4x4 pixels of the canvas, with a prior that sees the "
        "canvas",
    )

    @property
    def latent_map(self) -> bool:
        """Whether each 4x4 pixels of the canvas have `latent_count` Gaussians; else the image has."""
        return isinstance(self.latents, str)

    @property
    def latent_count(self) -> int:
        return int(str(self.latents).removeprefix("map:"))


class VAEConfig(VAENetwork):
    images: PositiveInt = Field(60_000, description="training budget in images")
    plain_images: Count = Field(
        0, description="final images of this stage's budget that are trained without augmentation"
    )
    learning_rate: Positive = Field(1e-3, description="peak of Adam's rate for encoder and decoder")
    prior_learning_rate: NonNegative = Field(
        3e-4, description="peak of Adam's rate for the prior; 0: it stays as its stage left it"
    )
    weight_decay: NonNegative = Field(
        0.0,
        description="AdamW's weight decay of the matrices in encoder and decoder, for every kind of model",
    )
    beta: NonNegative = Field(1.0, description="training weight of the KL; no reported number contains it")
    parse_weight: NonNegative = Field(
        20.0, description="lambda at the start: the weight of q's cross-entropy to the parse"
    )
    parse_weight_end: NonNegative = Field(
        0.0, description="lambda at the end of relaxed draws; with hard draws it is 0"
    )
    tau_end: Positive = Field(
        0.5, description="Gumbel-softmax temperature at the end of relaxed draws; it is 1 at first"
    )
    relaxed_images: Count | None = Field(
        None,
        description="most images with relaxed draws of z; the rest, at least a third of the budget, has hard "
        "draws and an unbiased gradient. If not given, two thirds are relaxed",
    )
    draws: PositiveInt = Field(
        2,
        description="hard draws of z for each image, each compared with the others; 1: hard draws train "
        "prior and decoder only, in half the time",
    )
    latent_ramp: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the budget over which the KL of the Gaussians (of a baseline, its whole KL) "
        "rises to its full weight in the loss; without it training may leave a map of latents unused",
    )

    @property
    def relaxed_share(self) -> float:
        """The share of the budget, at its start, with relaxed draws."""
        most = 1.0 if self.relaxed_images is None else self.relaxed_images / self.images
        return min(1 - HARD_SHARE, most)


# What the networks and the training of kind `authors` have that no setting states.
AUTHORS_HEAD_WIDTH, AUTHORS_MLP = 64, 2048  # the prior's channels of a head, hidden width of a block
AUTHORS_PRIOR_BATCH = 64  # global batch of the prior's stage, at most


class BaselineConfig(Section):
    """Sizes of the baselines; NP-DRAW has none of them. Section `vae` gives budget, rates and likelihood.

    A kind states its own `latents` and `steps`, which it has if none are given (`baselines/contract.py`).
    """

    latents: PositiveInt | None = Field(
        None,
        description="Gaussians of the image (vae, vamp, flow, map), a step (draw), an object (air) or a part "
        "(gaussian); numbers of a code (vqvae); if not given, vae, vamp, flow, map 40, vqvae 16, gaussian 8, "
        "draw 10, air 20",
    )
    steps: PositiveInt | None = Field(
        None, description="draw: glimpses; air: objects; if not given, draw 10, air 3, others 1"
    )
    local: PositiveInt = Field(8, description="map: Gaussians of each cell of 4x4 pixels")
    hidden: PositiveInt = Field(
        256, description="draw, air: width of the LSTMs; flow: of its layers; gaussian: of what makes a part"
    )
    width: PositiveInt = Field(64, description="all but draw and air: channels of encoder and decoder")
    depth: Count = Field(
        2, description="all but draw and air: residual blocks of encoder and decoder each (gaussian: decoder)"
    )
    pseudo_inputs: PositiveInt = Field(
        100,
        description="vamp: learned images whose posteriors are mixed as prior; each step encodes all",
    )
    flow_layers: PositiveInt = Field(6, description="flow: coupling layers of the prior")
    codes: PositiveInt = Field(64, description="vqvae: vectors of the codebook, the counterpart of bank.size")
    read: PositiveInt = Field(5, description="draw: side of the window it reads, in samples")
    write: PositiveInt = Field(5, description="draw: side of the window it writes, in samples")
    glimpse: PositiveInt = Field(20, description="air: side of an object's window, in samples")
