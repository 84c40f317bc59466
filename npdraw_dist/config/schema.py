"""Every setting of an experiment: frozen, typed, refused where impossible.

Symbols of the paper: T steps, K parts, L places, P patch side. Budgets are in images.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from npdraw_dist.config.augment import Augmentation, OwnAugmentation
from npdraw_dist.config.baseline import BaselineConfig
from npdraw_dist.config.batches import BatchSettings, largest_micro_batch
from npdraw_dist.config.colours import require_colour
from npdraw_dist.config.init import InitConfig
from npdraw_dist.config.places import GridConfig
from npdraw_dist.config.registry import (
    KINDS,
    LIKELIHOODS,
    ORDERS,
    SOURCES,
    KindName,
    LikelihoodName,
    OrderName,
    SourceName,
)
from npdraw_dist.config.scale import ScaleConfig
from npdraw_dist.config.section import NO_EFFECT_ON_RESULT, Section
from npdraw_dist.config.selection import Selection
from npdraw_dist.config.variants import (
    Dropout,
    NetworkVariants,
    OptimizerVariants,
    StepVariants,
    SurrogateVariants,
    require_possible,
    require_usable_latents,
)
from npdraw_dist.config.watching import Watching

if TYPE_CHECKING:
    from npdraw_dist.core.grid import Grid

Count = Annotated[int, Field(ge=0)]
# A flag comes as text, which a Literal of numbers would not take.
AsNumber = BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)
Channels = Annotated[Literal[1, 3], AsNumber]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch.Generator takes

STAGES = ("bank", "parse", "prior", "vae", "sample")
Heads = Literal["chained", "independent"]
TableKind = Literal["joint", "factorised"]
Binarize = Literal["none", "dynamic", "threshold"]
LEAST_GLYPH = 8  # side in pixels of an image of source fonts


class DataConfig(Section):
    source: SourceName = Field("digits", description="the data set")
    path: str | None = Field(None, description="its folder, pattern or URI; digits needs none")
    download: Annotated[bool, NO_EFFECT_ON_RESULT] = Field(
        True, description="let torchvision download missing files"
    )
    image_size: PositiveInt | None = Field(None, description="side in pixels; user sources are cropped to it")
    channels: Channels | None = Field(None, description="1 grey or 3 colour, for user sources")
    background: Annotated[str, BeforeValidator(require_colour)] = Field(
        "white", description="colour behind transparent pictures (source emoji), a name or #rrggbb"
    )
    split_by: Literal["face", "character"] = Field(
        "face", description="what source fonts holds out: families of faces, or characters of all faces"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of the training images, seeded and nested")
    valid_fraction: float = Field(0.1, ge=0, lt=1, description="share of the training images held out")
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="share held out where a source has no test split"
    )
    binarize: Binarize = Field(
        "dynamic", description="grey to binary: a new Bernoulli draw each time, x > 0.5, or not at all"
    )
    shard_rows: PositiveInt = Field(2048, description="images per shard")
    cache_mb: Annotated[NonNegative, NO_EFFECT_ON_RESULT] = Field(
        1024, description="training data up to this size is read into memory once; more is streamed"
    )
    max_bad_fraction: Annotated[Share, NO_EFFECT_ON_RESULT] = Field(
        0.01, description="a stage stops if a larger share of the rows is unreadable"
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        fixed = SOURCES[self.source].shape
        if fixed is not None:
            return fixed
        channels = SOURCES[self.source].channels or self.channels
        assert self.image_size is not None
        assert channels is not None
        return channels, self.image_size, self.image_size

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        known = SOURCES[self.source]
        own, channels = known.shape is None, known.channels
        if own and (self.image_size is None or (self.channels or channels) is None):
            unless = ", unless `npdraw prepare` wrote data.path" if known.prepared else ""
            needed = "data.image_size" if channels else "data.image_size and data.channels"
            raise ValueError(f"data.source {self.source} needs {needed}{unless}")
        if channels and self.channels not in (None, channels):
            raise ValueError(f"data.channels is {channels} for data.source {self.source}")
        if not own and (self.image_size is not None or self.channels is not None):
            raise ValueError(f"data.image_size and data.channels are fixed for data.source {self.source}")
        if self.source == "fonts" and self.image_size is not None and self.image_size < LEAST_GLYPH:
            raise ValueError(f"data.image_size is {self.image_size}; a glyph takes {LEAST_GLYPH} or more")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("data.valid_fraction + data.test_fraction leave no training image")
        return self


class BankConfig(Section):
    size: PositiveInt = Field(50, description="K, number of parts")
    max_patches: PositiveInt = Field(2_000_000, description="patches clustered at most, a seeded sample")
    min_energy: Share = Field(0.01, description="patches whose ink has a smaller mean square are dropped")
    shards: Annotated[PositiveInt | None, NO_EFFECT_ON_RESULT] = Field(
        None,
        description="Ray actors that share the patches; 1: one process has all; by their size if not given",
    )


class ParseConfig(Section):
    steps: PositiveInt | None = Field(None, description="T; all places of the grid where not given")
    order: OrderName = Field("aligned", description="order of the steps")


class Budget(Section):
    images: PositiveInt = Field(60_000, description="training budget in images")


class PriorNetwork(StepVariants):
    """The Transformer of the prior (paper section 3.1)."""

    depth: PositiveInt = Field(4, description="Transformer blocks")
    width: PositiveInt = Field(128, description="channels of a token")
    attention_heads: PositiveInt = Field(4, description="attention heads of a block")
    head_width: PositiveInt | None = Field(None, description="channels of a head; width / heads if not given")
    mlp: PositiveInt | None = Field(None, description="hidden width of a block; 4 x width if not given")
    dropout: float = Field(0.0, ge=0, lt=1, description="after attention and MLP")
    heads: Heads = Field("chained", description="what given where, or both given the state alone")
    table: TableKind = Field(
        "joint",
        description="what a part at a place adds to the sum: L x K x width free numbers, or a product of "
        "(L + K) x 4 x width; take factorised where L x K x width is above 16 million",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.head_width is None and self.width % self.attention_heads:
            raise ValueError("prior.attention_heads must divide prior.width, or give prior.head_width")
        return self


class PriorConfig(OwnAugmentation, Budget, PriorNetwork):
    learning_rate: Positive = Field(2e-3, description="peak of Adam's rate")
    weight_decay: NonNegative = Field(0.01, description="AdamW's, on matrices")
    batch_size: PositiveInt | None = Field(
        None, description="global batch of the prior's stage, in images; if not given, train.batch_size"
    )


class LikelihoodChoice(Section):
    likelihood: LikelihoodName = Field("bernoulli", description="p(x|z)")
    components: PositiveInt = Field(10, description="components of likelihood logistic_mixture")


class VAENetwork(NetworkVariants, Dropout, LikelihoodChoice):
    """Posterior, decoder and likelihood of NP-DRAW (paper section 3.2)."""

    encoder_width: PositiveInt = Field(64, description="channels of the posterior")
    encoder_depth: Count = Field(2, description="residual blocks on the grid of places")
    decoder_width: PositiveInt = Field(64, description="channels of the decoder")
    decoder_depth: Count = Field(2, description="residual blocks of the decoder")
    latents: Count = Field(
        0, description="Gaussians for what parts cannot say; the canvas alone still decodes; 0: none"
    )
    local_latents: Count = Field(
        0,
        description="Gaussians of each 4x4 pixels of the canvas, whose prior sees the canvas; in place of "
        "vae.latents; 0: none",
    )


class VAEConfig(VAENetwork, SurrogateVariants, OwnAugmentation, Budget):
    learning_rate: Positive = Field(1e-3, description="peak of Adam's rate for encoder and decoder")
    prior_learning_rate: Positive = Field(3e-4, description="peak of Adam's rate for the prior")
    weight_decay: NonNegative = Field(
        0.0,
        description="AdamW's, on matrices of encoder and decoder, of every kind of model; that of a prior "
        "over parts or codes is prior.weight_decay",
    )
    train_prior: bool = Field(
        True, description="train the prior together with the VAE; false freezes it, as the authors do"
    )
    beta: NonNegative = Field(1.0, description="training weight of the KL; no reported number contains it")
    parse_weight: NonNegative = Field(20.0, description="lambda at 0 images: cross-entropy of q to the parse")
    parse_weight_end: NonNegative = Field(0.0, description="lambda after the ramp; hard draws have none")
    parse_ramp: Share = Field(1.0, description="share of the relaxed draws over which lambda falls")
    tau_start: Positive = Field(1.0, description="Gumbel-softmax temperature at 0 images")
    tau_end: Positive = Field(0.5, description="Gumbel-softmax temperature at the end of relaxed draws")
    teacher_start: Share = Field(0.0, description="chance at 0 images that z is the parse, not a draw of q")
    teacher_ramp: Share = Field(
        0.3, description="share of the relaxed draws over which that chance falls to 0"
    )
    what_gradient: Literal["relaxed", "straight_through"] = Field(
        "relaxed", description="the canvas in training: mixtures of parts, or the drawn part alone"
    )
    whether_gradient: Literal["none", "straight_through", "relaxed"] = Field(
        "relaxed",
        description="gradient of the reconstruction in whether: of parts half drawn in training, "
        "straight through, or none",
    )
    hard_share: Share = Field(
        0.33,
        description="least share of the budget, at its end, with hard draws of z and the unbiased gradient "
        "of the bound; before it draws are relaxed",
    )
    relaxed_images: Count | None = Field(
        None,
        description="most images with relaxed draws; a larger budget then adds hard draws only. If not "
        "given, vae.hard_share alone decides",
    )
    draws: PositiveInt = Field(
        2,
        description="hard draws of z for each image, each compared with the others; 1: hard draws train "
        "prior and decoder only, for half the time",
    )
    latent_ramp: Share = Field(
        0.0,
        description="share of the budget over which the KL of the Gaussians (of a baseline, its whole KL) "
        "rises to its full weight in the loss; without it training may leave vae.local_latents unused",
    )

    @property
    def relaxed_share(self) -> float:
        """The share of the budget, at its start, with relaxed draws."""
        most = 1.0 if self.relaxed_images is None else self.relaxed_images / self.images
        return min(1 - self.hard_share, most)


Precision = Literal["auto", "float32", "bfloat16"]


class TrainConfig(Watching, Selection, Augmentation, OptimizerVariants, BatchSettings):
    gradient_clip: Positive = Field(5.0, description="largest norm of the global gradient")
    warmup: Share = Field(0.05, description="share of the budget over which the learning rate rises")
    eval_every_images: PositiveInt = Field(
        20_000, description="validation and checkpoint interval; at least a thousandth of the budget"
    )
    eval_batches: PositiveInt = Field(8, description="largest number of validation batches")
    precision: Precision = Field(
        "auto",
        description="on a GPU: auto takes bfloat16 if the GPU has it natively, else float32; a CPU: float32",
    )
    compile: bool = Field(
        False, description="torch.compile the networks; takes a minute at the start and a C++ compiler"
    )


class ModelConfig(Section):
    kind: KindName = Field(
        "npdraw", description=f"the model that is trained: {', '.join(kind.title for kind in KINDS.values())}"
    )


class EvalConfig(Section):
    split: Annotated[Literal["valid", "test"], NO_EFFECT_ON_RESULT] = Field(
        "test", description="the split of the final numbers; with valid no test image is ever read"
    )
    k: PositiveInt = Field(50, description="importance samples of the final likelihood")
    images: PositiveInt = Field(256, description="largest number of images scored")
    samples: PositiveInt = Field(64, description="images in samples.png")
    temperature: Positive = Field(1.0, description="of the prior when sampling")


class Experiment(Section):
    """A whole run. `--section.key value` on the command line sets a field."""

    seed: Seed = Field(0, description="seed of everything random")
    data: DataConfig = DataConfig()
    grid: GridConfig = GridConfig()
    bank: BankConfig = BankConfig()
    parse: ParseConfig = ParseConfig()
    prior: PriorConfig = PriorConfig()
    vae: VAEConfig = VAEConfig()
    train: TrainConfig = TrainConfig()
    scale: Annotated[ScaleConfig, NO_EFFECT_ON_RESULT] = ScaleConfig()
    model: ModelConfig = ModelConfig()
    baseline: BaselineConfig = BaselineConfig()
    eval: EvalConfig = EvalConfig()
    init: InitConfig = InitConfig()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of the model's kind, in order. Baselines have neither a bank nor a prior of parts."""
        return STAGES if self.model.kind == "npdraw" else ("parse", "vae", "sample")

    def section_of(self, stage: str) -> PriorConfig | VAEConfig:
        """The settings of a stage that trains. Baselines train in stage `vae`."""
        return self.prior if stage == "prior" else self.vae

    def batch_of(self, stage: str, workers: int | None = None) -> tuple[int, int]:
        """The global batch and the micro-batch of a stage that trains, in images.

        Each of `workers` has a micro-batch; if not given, as many as scale.num_workers allows.
        """
        size, most = self._global_batch(stage), workers or self.scale.most_workers
        return size, largest_micro_batch(size, min(self.train.micro_batch, size // most))

    def _global_batch(self, stage: str) -> int:
        own = self.prior.batch_size if stage == "prior" else None
        return own or self.train.batch_size

    def validated_in(self, stage: str) -> int:
        """The most images of a validation, which do not depend on the number of workers."""
        return self.train.eval_batches * self.batch_of(stage, workers=1)[1]

    @property
    def canvas_grid(self) -> "Grid":
        """The places of the canvas. Raises ValueError if the sizes do not fit."""
        return self.grid.of_canvas(self.data.shape)

    @property
    def steps(self) -> int:
        """T."""
        return self.parse.steps or self.grid.sizes_of(self.data.shape).places

    @model_validator(mode="after")
    def _possible(self) -> Self:
        places = self.grid.sizes_of(self.data.shape).places
        if self.init.extend_bank and self.init.model is None:
            raise ValueError("init.extend_bank adds to the parts of a trained model; name it: init.model")
        if self.steps > places:
            raise ValueError(f"parse.steps is {self.steps}, but the grid has {places} places; lower it")
        if ORDERS[self.parse.order] and self.steps != places:
            free = [name for name, aligned in ORDERS.items() if not aligned]
            raise ValueError(
                f"parse.order {self.parse.order} takes one step a place: parse.steps {places}, not "
                f"{self.steps} (or choose {', '.join(free[:-1])} or {free[-1]})"
            )
        if self.model.kind == "npdraw":
            aligned = ORDERS[self.parse.order]
            require_possible(self.prior, self.vae, self.vae.surrogate, self.prior.heads, aligned)
            require_usable_latents(self.vae.latents, self.vae.local_latents, self.vae.decoder)
        if self.model.kind == "flow" and self.baseline.latents == 1:
            raise ValueError("model.kind flow couples halves of z; it takes baseline.latents 2 or more")
        if self.scale.least_workers > self.scale.most_workers:
            raise ValueError(f"scale.num_workers is {self.scale.num_workers}; write the smaller number first")
        smallest = min(map(self._global_batch, self.stage_names))
        if self.scale.most_workers > smallest:
            raise ValueError(
                f"scale.num_workers is {self.scale.num_workers}, but a batch has {smallest} images; lower it"
            )
        likelihood, binary = self.vae.likelihood, LIKELIHOODS[self.vae.likelihood].binary
        if binary and self.data.shape[0] != 1:
            raise ValueError(
                f"vae.likelihood {likelihood} is for grey images; take logistic_mixture or logistic"
            )
        if binary and self.data.binarize == "none":
            raise ValueError(f"vae.likelihood {likelihood} needs data.binarize dynamic or threshold")
        if not binary and self.data.binarize != "none":
            raise ValueError(f"vae.likelihood {likelihood} needs data.binarize none")
        return self
