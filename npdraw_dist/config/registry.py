"""Everything that a config can name: data sources, likelihoods, kinds of models and orders.

An entry says where its code is, as "module:attribute" below `npdraw_dist`, and what a config must know
before that code is imported. To add a source, likelihood or model, write its code and add one line here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal


@dataclass(frozen=True)
class Source:
    """A data source. shape: (channels, height, width) of its images; None if the user states it.

    channels: of images of which the user states the side alone. prepared: it reads what `npdraw prepare`
    writes, whose manifest states the shape.
    """

    code: str  # function (DataConfig, seed) -> data.shards.Source
    shape: tuple[int, int, int] | None = None
    channels: int | None = None
    prepared: bool = False


@dataclass(frozen=True)
class Likelihood:
    """p(x|z). binary: of binarised grey images; else of 8-bit values."""

    code: str  # class with one argument, the number of channels
    binary: bool


@dataclass(frozen=True)
class Kind:
    """A kind of model. latents, steps: of a baseline, if the config gives none.

    sequence: it has NP-DRAW's prior over steps, whose sizes are in section `prior`. places: it draws at the
    places of section `grid`.
    """

    code: str  # class with one argument, its spec
    title: str
    latents: int = 0
    steps: int = 0
    sequence: bool = False
    places: bool = False


SOURCES = {
    "digits": Source("data.readers.arrays:open_digits", (1, 28, 28)),
    "mnist": Source("data.readers.arrays:open_idx", (1, 28, 28)),
    "fashion_mnist": Source("data.readers.arrays:open_idx", (1, 28, 28)),
    "omniglot": Source("data.readers.files:open_omniglot", (1, 28, 28)),
    "cifar10": Source("data.readers.arrays:open_cifar", (3, 32, 32)),
    "celeba": Source("data.readers.files:open_celeba", (3, 64, 64)),
    "emoji": Source("data.readers.emoji:open_emoji", channels=3),
    "fonts": Source("data.readers.fonts:open_fonts", channels=1),
    "imagefolder": Source("data.readers.files:open_imagefolder"),
    "webdataset": Source("data.readers.tars:open_webdataset", prepared=True),
    "parquet": Source("data.readers.tables:open_parquet", prepared=True),
    "given": Source("data.readers.arrays:open_given"),  # images that a caller of `fit` brings
}
LIKELIHOODS = {
    "bernoulli": Likelihood("nn.likelihoods:Bernoulli", binary=True),
    "logistic": Likelihood("nn.likelihoods:DiscretizedLogistic", binary=False),
    "logistic_mixture": Likelihood("nn.likelihoods:DiscretizedLogisticMixture", binary=False),
}
KINDS = {
    "npdraw": Kind("nn.npdraw:NPDraw", "NP-DRAW", sequence=True, places=True),
    "vae": Kind("nn.baselines.vae:ConvVAE", "VAE", latents=40, steps=1),
    "vamp": Kind("nn.baselines.vae:VampVAE", "VAE with VampPrior", latents=40, steps=1),
    "flow": Kind("nn.baselines.vae:FlowVAE", "VAE with flow prior", latents=40, steps=1),
    "map": Kind("nn.baselines.map_vae:MapVAE", "VAE with a map", latents=40, steps=1),
    "vqvae": Kind("nn.baselines.vqvae:VQVAE", "VQ-VAE", latents=16, steps=1, sequence=True),
    "gaussian": Kind(
        "nn.baselines.gaussian_parts:GaussianParts",
        "Gaussian parts",
        latents=8,
        steps=1,
        sequence=True,
        places=True,
    ),
    "draw": Kind("nn.baselines.draw:DRAW", "DRAW", latents=10, steps=10),
    "air": Kind("nn.baselines.air:AIR", "AIR", latents=20, steps=3),
}


def kind_of(variant: str) -> str:
    """The kind of a variant in a comparison, such as `npdraw` of `npdraw-lstm`."""
    return variant.split("-")[0]


def title_of(variant: str) -> str:
    """`NP-DRAW, lstm` of `npdraw-lstm`."""
    kind, _, how = variant.partition("-")
    return ", ".join(filter(None, (KINDS[kind].title, how.replace("-", " "))))


def in_order(variants: Iterable[str]) -> list[str]:
    """Distinct variants in the order of KINDS."""
    return sorted(set(variants), key=lambda variant: (list(KINDS).index(kind_of(variant)), variant))


# What a run starts from: setting of section init -> its class.
STARTS = {"model": "pipeline.models:SourceModel", "bank": "pipeline.models:SourceBank"}
# Order of the steps -> whether step t is place t. Their code is in `core/orders.py`, which imports torch.
ORDERS = {"aligned": True, "raster": False, "ranked": False, "path": False}

# For the type checker these are plain names; at run time a config refuses any other.
if TYPE_CHECKING:
    SourceName = str
    LikelihoodName = str
    KindName = str
    OrderName = str
else:
    SourceName = Literal[tuple(SOURCES)]
    LikelihoodName = Literal[tuple(LIKELIHOODS)]
    KindName = Literal[tuple(KINDS)]
    OrderName = Literal[tuple(ORDERS)]


def load(code: str) -> Any:
    """The object at `code`, "module:attribute" below `npdraw_dist`. Raises ImportError or AttributeError."""
    return resolve_name(f"npdraw_dist.{code}")
