"""Defines `Experiment`, all settings of a run.

The sections are in `config/data.py`, `networks.py` and `training.py`; this file checks that the settings of
different sections fit each other.
Symbols of the paper: T steps, K parts, L places, P patch side. Budgets are in images.
"""

from argparse import SUPPRESS
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from npdraw_dist.config.data import BankConfig, DataConfig, GridConfig, ParseConfig
from npdraw_dist.config.networks import AUTHORS_PRIOR_BATCH, BaselineConfig, PriorConfig, VAEConfig
from npdraw_dist.config.registry import KINDS, LIKELIHOODS, ORDERS, KindName
from npdraw_dist.config.section import NonNegative, Positive, RunHalf, Section, Seed
from npdraw_dist.config.training import ScaleConfig, TrainConfig

if TYPE_CHECKING:
    from npdraw_dist.core.grid import Grid

STAGES = ("data", "bank", "parse", "prior", "vae", "sample")
OF_PARTS = ("npdraw", "authors")  # the kinds that draw parts of a bank


class ModelConfig(Section):
    kind: KindName = Field(
        "npdraw", description=f"the model that is trained, of the installed kinds: {', '.join(KINDS)}"
    )


class EvalRun(RunHalf):
    split: Literal["valid", "test"] = "test"
    """the split on which the final metrics are computed; with valid, no test image is read"""


class EvalConfig(EvalRun):
    k: PositiveInt = 50
    """number of importance samples for the final likelihood"""
    images: PositiveInt = 256
    """largest number of images that are scored"""
    temperature: Positive = 1.0
    """temperature of the prior in samples; the model keeps it as its default"""
    guidance: NonNegative = 1.5
    """strength of a condition in samples, 1 as in training; the model keeps it as its default"""


class InitRun(RunHalf):
    """Paths of the model or bank that a run starts from.

    A resumed run may change the paths, since `InitConfig.sha256` identifies the file.
    """

    model: str | None = None
    """a model of any kind to start from: a model folder, a run, a URI or an id of the hub. The new run
    takes over its network, and its parts if it has any"""
    bank: str | None = None
    """a part bank to start from, made by `npdraw bank` or by another run. The new run takes over its parts"""


class InitConfig(InitRun):
    """The model or the part bank that a run starts from."""

    sha256: Annotated[str | None, SUPPRESS] = None
    """SHA-256 of the weights of init.model, or of the file of init.bank"""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.model is not None and self.bank is not None:
            raise ValueError("init.model has its own bank; leave out init.bank")
        return self

    @property
    def has_parts(self) -> bool:
        """Whether a run of NP-DRAW takes over the parts of `init.model` or `init.bank`."""
        return self.model is not None or self.bank is not None


class Experiment(Section):
    """All settings of a run. `--section.key value` on the command line sets a field."""

    seed: Seed = 0
    """seed of all random numbers"""
    data: DataConfig = DataConfig()
    grid: GridConfig = GridConfig()
    bank: BankConfig = BankConfig()
    parse: ParseConfig = ParseConfig()
    prior: PriorConfig = PriorConfig()
    vae: VAEConfig = VAEConfig()
    train: TrainConfig = TrainConfig()
    scale: ScaleConfig = ScaleConfig()
    model: ModelConfig = ModelConfig()
    baseline: BaselineConfig = BaselineConfig()
    eval: EvalConfig = EvalConfig()
    init: InitConfig = InitConfig()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of the model's kind, in order; baselines have no stage bank, parse or prior."""
        return STAGES if self.has_parts else ("data", "vae", "sample")

    @property
    def has_parts(self) -> bool:
        """Whether the model draws parts of a bank."""
        return self.model.kind in OF_PARTS

    @property
    def by_authors(self) -> bool:
        """Whether networks and training follow the authors' released code."""
        return self.model.kind == "authors"

    @property
    def takes_condition(self) -> bool:
        """Whether the prior is conditioned on the class of an image or words about it."""
        return self.model.kind == "npdraw" and self.prior.condition != "none"

    def section_of(self, stage: str) -> PriorConfig | VAEConfig:
        """The settings of a stage that trains. Baselines train in stage `vae`."""
        return self.prior if stage == "prior" else self.vae

    def train_of(self, stage: str) -> TrainConfig:
        """The settings of section `train` for a stage. The authors' prior has a smaller batch."""
        if not (self.by_authors and stage == "prior"):
            return self.train
        batch = min(self.train.batch_size, AUTHORS_PRIOR_BATCH)
        return self.train.model_copy(update={"batch_size": batch})

    @property
    def canvas_grid(self) -> "Grid":
        """The grid of places on the canvas. Raises ValueError if the sizes do not fit."""
        return self.grid.of_canvas(self.data.shape, centred=self.by_authors)

    @property
    def steps(self) -> int:
        return self.parse.steps or self.grid.sizes_of(self.data.shape).places

    @model_validator(mode="after")
    def _possible(self) -> Self:
        places = self.grid.sizes_of(self.data.shape).places
        if self.steps > places:
            raise ValueError(f"parse.steps is {self.steps}, but the grid has {places} places; lower it")
        if ORDERS[self.parse.order] and self.steps != places:
            free = [name for name, aligned in ORDERS.items() if not aligned]
            raise ValueError(
                f"parse.order {self.parse.order} needs parse.steps {places}, one for each place, not "
                f"{self.steps} (or choose {', '.join(free[:-1])} or {free[-1]})"
            )
        if self.by_authors:
            if not ORDERS[self.parse.order]:
                raise ValueError("kind authors has one step for each place; it needs parse.order aligned")
            if self.prior.heads != "independent":
                raise ValueError("kind authors needs prior.heads independent")
            if self.prior.network != "transformer":
                raise ValueError("kind authors needs prior.network transformer")
            if self.vae.latents:
                raise ValueError("vae.latents needs the decoder of kind npdraw, not authors; leave it out")
        if self.prior.condition != "none" and self.model.kind != "npdraw":
            raise ValueError("prior.condition is for model.kind npdraw; set it to none")
        if self.model.kind == "flow" and self.baseline.latents == 1:
            raise ValueError("model.kind flow couples halves of z; it needs baseline.latents 2 or more")
        if self.scale.least_workers > self.scale.most_workers:
            raise ValueError(f"scale.num_workers is {self.scale.num_workers}; write the smaller number first")
        smallest = min(self.train_of(stage).batch_size for stage in self.stage_names)
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
