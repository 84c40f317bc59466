"""A search space as data: which settings of the config vary, how points are drawn from them, what decides.

A new space is a file in tune_spaces/spaces with a SPACE, a `Space` or `Kinds`; it is found by its file name.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Literal
from zlib import crc32

from pydantic import ValidationError

from npdraw_dist.config.load import build, explain, merge, names_in, read_preset, require_known, with_changes
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.schema import OF_PARTS, Experiment
from npdraw_dist.core.errors import UserError

# The names that Tune sees in each report: what decides, and the images seen so far.
SCORE, IMAGES = "score", "images"

Value = str | float | bool | None
# Dotted setting -> value.
Settings = Mapping[str, Value]
# Field -> index of its choice, or its number. The empty point is the preset itself.
Point = Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """One of `values`: values of the setting, or mappings of several settings that change together."""

    values: tuple[Value | Settings, ...]

    def at(self, u: float) -> int:
        """The index of the choice at u in [0, 1)."""
        return min(int(u * len(self.values)), len(self.values) - 1)

    def ends(self, name: str) -> range:
        """All coordinates of the field `name`. Raises UserError if there are none."""
        if not self.values:
            raise UserError(f"{name} has no values")
        return range(len(self.values))


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`. log: both are positive, and draws are uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    def at(self, u: float) -> float:
        """The number at u in [0, 1)."""
        if self.log:
            return float(math.exp(math.log(self.low) + u * math.log(self.high / self.low)))
        return float(self.low + u * (self.high - self.low))

    def ends(self, name: str) -> tuple[float, float]:
        """The least and the largest number of the field `name`. Raises UserError if there is no range."""
        if not (self.low < self.high and (self.low > 0 or not self.log)):
            raise UserError(f"{name} has no range from {self.low} to {self.high}")
        return self.low, self.high


@dataclass(frozen=True)
class Metric:
    """A column of the results, nats per validation image: less is better.

    While `stage` trains, `sign` times its reported `key` stands for it.
    """

    stage: Literal["prior", "vae"]
    key: str
    sign: int


METRICS = {
    "valid_nll": Metric("vae", "valid/elbo", -1),
    "valid_prior_nll": Metric("prior", "valid/nll", 1),
}


def require_metric(name: str) -> None:
    """Raises UserError unless `name` is a key of METRICS; test numbers never decide."""
    why = "; test numbers are reported but never decide" if name.startswith("test") else ""
    require_known("--metric", name, list(METRICS), why)


@dataclass(frozen=True)
class Space:
    """What a sweep varies. Raises UserError on a field or a setting that no config can have.

    fields: dotted setting (or any name, if the choices are mappings) -> its domain.
    samples: default of --num-samples. budgets: preset -> settings over it, such as training budgets.
    metric: what decides, of METRICS.
    curve: nothing is chosen: every trial runs to its end and is scored on the test split too, and curve.png
    has the NLL against the number of training images, a line for each kind of model.
    """

    fields: Mapping[str, Choice | Range]
    samples: int = 16
    preset: str = "digits"
    budgets: Mapping[str, Settings] = field(default_factory=dict)
    metric: str = "valid_nll"
    curve: bool = False

    def __post_init__(self) -> None:
        if not self.fields:
            raise UserError("there are no fields")
        require_metric(self.metric)
        for preset in {self.preset, *self.budgets}:
            self.base(preset)
        for name, domain in self.fields.items():
            for end in domain.ends(name):
                _require_possible(self.settings({name: end}))

    @property
    def keys(self) -> list[str]:
        """The dotted settings that vary, in the order of the fields."""
        ends = [{name: end} for name, domain in self.fields.items() for end in domain.ends(name)]
        return list(dict.fromkeys(key for point in ends for key in self.settings(point)))

    def settings(self, point: Point) -> dict[str, Value]:
        """The dotted settings at a point."""
        settings: dict[str, Value] = {}
        for name, coordinate in point.items():
            domain = self.fields[name]
            value = domain.values[int(coordinate)] if isinstance(domain, Choice) else coordinate
            settings |= value if isinstance(value, Mapping) else {name: value}
        return settings

    def base(self, preset: str, *layers: Mapping[str, Any]) -> Experiment:
        """The config of a preset, under the space's budgets for it, under nested `layers`."""
        return build(merge(read_preset(preset), nested(self.budgets.get(preset, {})), *layers))

    def experiment(self, base: Experiment, point: Point) -> Experiment:
        """The config of a trial: `base` with the settings at `point`. Raises UserError if impossible."""
        return with_changes(base, nested(self.settings(point)))

    def points(self, seed: int) -> Iterator[Point]:
        """The empty point, then a scrambled Sobol sequence: the same points for the same seed.

        So every value of a field is drawn about equally often, even in few trials.
        """
        from scipy.stats import qmc  # slow to import, and --help needs no points

        yield {}

        sequence = qmc.Sobol(len(self.fields), scramble=True, seed=seed)
        while True:
            row = sequence.random(1)[0]
            yield {name: domain.at(u) for (name, domain), u in zip(self.fields.items(), row, strict=True)}

    def latin(self, seed: int, count: int) -> list[Point]:
        """`count` points of a Latin hypercube (McKay et al. 1979): the same points for the same seed.

        Each field has a random order of its own, in which all its values come equally often. In 6 points of
        a Sobol sequence, fields of two values always change together. Fields of the same name and
        domain have the same values in another space.
        """
        import numpy as np
        from scipy.stats import qmc

        columns = {}
        for name, domain in self.fields.items():
            generator = np.random.default_rng([seed, crc32(name.encode())])
            columns[name] = [domain.at(u) for u in qmc.LatinHypercube(1, seed=generator).random(count)[:, 0]]
        return [{name: column[i] for name, column in columns.items()} for i in range(count)]


@dataclass(frozen=True)
class Kinds:
    """The space of a comparison: as many trials, and the same counted time, for each kind of model.

    spaces: kind of model, or a variant such as `npdraw-lstm` -> the ranges of its trials. common: ranges of
    any other kind, beside those that it names itself (`Kind.searched`). settings: over the preset, for all
    kinds. core_seconds: fraction of the training images -> counted seconds of a core of each
    training. seeds: data source -> trainings of each winner; `other_seeds` of sources that are not named.
    longer: factors of the time for the row "until it stops improving"; without any there is no such row.
    """

    spaces: Mapping[str, Space]
    settings: Settings
    core_seconds: Mapping[float, float]
    trials: int = 10
    preset: str = "mnist_cpu"
    seeds: Mapping[str, int] = field(default_factory=dict)
    other_seeds: int = 3
    longer: tuple[int, ...] = (2, 4)
    common: Mapping[str, Choice | Range] = field(default_factory=dict)

    def seconds_of(self, fraction: float) -> float:
        """The counted seconds at a fraction: those of the next larger one that is written down.

        Raises UserError if there is none.
        """
        larger = [one for one in self.core_seconds if one >= fraction]
        if not larger:
            raise UserError(f"the space has no seconds for the fraction {fraction:g}; give --core-seconds")
        return self.core_seconds[min(larger)]

    def until(self, longest: int | None) -> "Kinds":
        """These with factors of `longer` up to `longest` (None: all). Raises UserError if it leaves none."""
        left = tuple(factor for factor in self.longer if longest is None or factor <= longest)
        if longest is not None and not left:
            all_of = ", ".join(map(str, self.longer)) or "none"
            raise UserError(f"--longest {longest} leaves no longer training; the space has {all_of}")
        return replace(self, longer=left)

    def of(self, kind: str) -> Space:
        """The ranges of the trials of a kind."""
        if kind in self.spaces:
            return self.spaces[kind]
        own = {name: Choice(tuple(values)) for name, values in KINDS[kind].searched.items()}
        return Space({**self.common, **own}, preset=self.preset)

    def chosen(self, names: str | None) -> list[str]:
        """The kinds of `--kinds`; None: those that have ranges of their own here. Raises UserError."""
        if names is None:
            return list(self.spaces)
        others = [kind for kind in KINDS if self.common and kind not in (*OF_PARTS, *self.spaces)]
        found = names_in("--kinds", "kind", names, [*self.spaces, *others])
        if len(found) < 2:
            raise UserError("--kinds needs two kinds or more, such as npdraw,vae")
        return found


def _require_possible(settings: Settings) -> None:
    """Raises UserError on an unknown key or a wrong value; each trial checks how its settings combine."""
    try:
        Experiment.model_validate(nested(settings))
    except ValidationError as error:
        if any(item["type"] != "value_error" for item in error.errors()):
            raise UserError(explain(error)) from None


def refuse_settings(flags: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
    """Raises UserError if the nested `flags` set one of `keys`."""
    for key in keys:
        section, _, name = key.rpartition(".")
        if name in (flags.get(section, {}) if section else flags):
            raise UserError(f"--{key} {why}; leave it out")


def require_scratch(base: Experiment) -> None:
    """Raises UserError if trials would start from a model or a bank."""
    if base.init.has_parts:
        raise UserError("section init is set, but the trials of a sweep train from scratch; leave it out")


def nested(settings: Settings) -> dict[str, Any]:
    """{"bank.size": 50} -> {"bank": {"size": 50}}."""
    pairs = [(*key.rpartition("."), value) for key, value in settings.items()]
    return merge(
        *({section: {name: value}} if section else {name: value} for section, _, name, value in pairs)
    )


def setting_of(experiment: Experiment, key: str) -> Value:
    """The value of a dotted setting; T for parse.steps, whose None stands for all places of the grid."""
    if key == "parse.steps":
        return experiment.steps
    value: Value = reduce(getattr, key.split("."), experiment)  # type: ignore[assignment]
    return value
