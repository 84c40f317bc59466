"""The sections `prior`, `vae` and `baseline`, which define the networks and how each is trained.

The settings that define a network are in classes of their own, since model files contain them too
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
    """A kind of condition, whose vocabulary is learned from the data (`core/vocabulary.py`).

    tokens: A, the number of its tokens. entries: what its vocabulary contains. phrase: its name in
    messages, such as "by class" in "conditioned by class".
    """

    tokens: int
    entries: str
    phrase: str


CONDITIONS = {"class": Condition(1, "classes", "by class"), "words": Condition(8, "words", "by words")}
if TYPE_CHECKING:
    ConditionName = str
else:
    ConditionName = Literal["none", *CONDITIONS]
HARD_SHARE = 0.33  # least share of the VAE's budget, at its end, that has hard draws


class PriorVocabulary(RunHalf):
    """The vocabulary of conditions, which a run finds in its data or takes from `init.model`."""

    vocabulary: Annotated[tuple[str, ...], SUPPRESS] = ()
    """names of the classes, or words and pieces of words, of the training images"""


class PriorNetwork(PriorVocabulary):
    """The network of the prior (paper section 3.1)."""

    depth: PositiveInt = 4
    """number of blocks"""
    width: PositiveInt = 128
    """channels of a hidden state"""
    attention_heads: PositiveInt = 4
    """attention heads of a block"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """dropout after attention or LSTM, and after the MLP"""
    network: BlockKind = "transformer"
    """how the prior reads earlier steps. transformer: by attention; lstm: by the state of an LSTM"""
    heads: Literal["chained", "independent"] = "chained"
    """chained: p(what) depends on where; independent: both depend on the hidden state alone"""
    table: TableKind = "pixels"
    """how a part at a place is embedded. pixels: from the part's pixels alone, so that another bank can
    replace it; joint: L x K x width free parameters; factorised: products of (L + K) x 4 x width parameters.
    A vqvae needs joint, since its codes have no pixels"""
    condition: ConditionName = "none"
    """what the prior is conditioned on: nothing, the class of the image, or words about it"""

    @property
    def condition_tokens(self) -> int:
        """A, the number of tokens before the first step."""
        return 0 if self.condition == "none" else CONDITIONS[self.condition].tokens

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.attention_heads:
            raise ValueError("prior.attention_heads must divide prior.width; change one of them")
        return self


class PriorConfig(PriorNetwork):
    images: PositiveInt = 60_000
    """training budget in images"""
    plain_images: Count = 0
    """number of images, the last of this stage's budget, that are not augmented"""
    learning_rate: Positive = 2e-3
    """peak of Adam's learning rate"""


class ImageNetwork(Section):
    """Settings of encoder and decoder that all kinds of models share."""

    likelihood: LikelihoodName = "bernoulli"
    """the distribution p(x|z) of an image"""
    components: PositiveInt = 10
    """number of components of the likelihood logistic_mixture"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """dropout in encoder and decoder, in residual blocks or on the inputs and outputs of an LSTM; the
    authors' networks have no dropout"""


def _latents(value: object) -> int | str:
    """Validates a value such as 16 or "map:8". The value of a flag is text."""
    found = re.fullmatch(r"(map:)?(0|[1-9][0-9]*)", str(value), re.ASCII)
    if found is None or str(value) == "map:0":
        raise ValueError(f"vae.latents is {value!r}; give a number such as 16, or a map such as map:8")
    return str(value) if found[1] else int(str(value))


class VAENetwork(ImageNetwork):
    """Posterior, decoder and likelihood of NP-DRAW (paper section 3.2)."""

    encoder_width: PositiveInt = 64
    """channels of the posterior"""
    decoder_width: PositiveInt = 64
    """channels of the decoder"""
    decoder_depth: Count = 2
    """residual blocks of the decoder"""
    latents: Annotated[int | str, BeforeValidator(_latents)] = 0
    """number of Gaussians for details that parts cannot express; the decoder also works without them. 16: 16
    for the image; map:8: 8 for each 4x4 pixels of the canvas, with a prior conditioned on the canvas"""

    @property
    def latent_map(self) -> bool:
        """Whether `latent_count` Gaussians are for each 4x4 pixels of the canvas, not for the whole image."""
        return isinstance(self.latents, str)

    @property
    def latent_count(self) -> int:
        return int(str(self.latents).removeprefix("map:"))


class VAEConfig(VAENetwork):
    images: PositiveInt = 60_000
    """training budget in images"""
    plain_images: Count = 0
    """number of images, the last of this stage's budget, that are not augmented"""
    learning_rate: Positive = 1e-3
    """peak of Adam's learning rate for encoder and decoder"""
    prior_learning_rate: NonNegative = 3e-4
    """peak of Adam's learning rate for the prior; 0: the prior does not change"""
    weight_decay: NonNegative = 0.0
    """AdamW's weight decay of the matrices in encoder and decoder"""
    beta: NonNegative = 1.0
    """weight of the KL in the training loss; reported metrics do not include it"""
    parse_weight: NonNegative = 20.0
    """lambda at the start, the weight of q's cross-entropy to the parse"""
    parse_weight_end: NonNegative = 0.0
    """lambda at the end of the relaxed draws; with hard draws lambda is 0"""
    tau_end: Positive = 0.5
    """Gumbel-softmax temperature at the end of the relaxed draws; it starts at 1"""
    relaxed_images: Count | None = None
    """largest number of images with relaxed draws of z; the rest, at least a third of the budget, has hard
    draws and an unbiased gradient. Default: two thirds of the budget"""
    draws: PositiveInt = 2
    """number of hard draws of z for each image; the gradient compares each draw with the others. 1: hard
    draws train only prior and decoder, in half the time"""
    latent_ramp: float = Field(0.0, ge=0, le=1)
    """share of the budget over which the KL of the Gaussians (in a baseline the whole KL) rises to its
    full weight in the loss; without it a map of latents may stay unused"""

    @property
    def relaxed_share(self) -> float:
        """The share of the budget, from its start, that has relaxed draws."""
        most = 1.0 if self.relaxed_images is None else self.relaxed_images / self.images
        return min(1 - HARD_SHARE, most)


# Constants of kind `authors` that are not settings.
AUTHORS_HEAD_WIDTH, AUTHORS_MLP = 64, 2048  # the prior's channels per attention head, and MLP width
AUTHORS_PRIOR_BATCH = 64  # largest global batch in the stage of the prior


class BaselineConfig(Section):
    """Sizes of the baselines. Section `vae` gives their budget, learning rates and likelihood.

    A kind states its default `latents` and `steps` (`baselines/contract.py`).
    """

    latents: PositiveInt | None = None
    """number of Gaussians, by default 40 for the image (vae, vamp, flow, map), 10 for a step (draw), 20 for
    an object (air) or 8 for a part (gaussian); length of a code, by default 16 (vqvae)"""
    steps: PositiveInt | None = None
    """draw: number of glimpses, by default 10; air: largest number of objects, by default 3"""
    local: PositiveInt = 8
    """map: number of Gaussians of each cell of 4x4 pixels"""
    hidden: PositiveInt = 256
    """hidden width: of the LSTMs (draw, air), the layers (flow), the part network (gaussian)"""
    width: PositiveInt = 64
    """all but draw and air: channels of encoder and decoder"""
    depth: Count = 2
    """all but draw and air: residual blocks in the encoder and in the decoder"""
    pseudo_inputs: PositiveInt = 100
    """vamp: number of learned images whose posteriors are mixed as the prior"""
    flow_layers: PositiveInt = 6
    """flow: number of coupling layers of the prior"""
    codes: PositiveInt = 64
    """vqvae: number of vectors in the codebook, the counterpart of bank.size"""
    read: PositiveInt = 5
    """draw: side of the window that it reads, in sampled points"""
    write: PositiveInt = 5
    """draw: side of the window that it writes, in sampled points"""
    glimpse: PositiveInt = 20
    """air: side of an object's window, in sampled points"""
