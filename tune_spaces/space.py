"""Defines search spaces: which settings vary, how points are drawn, and which metric ranks the trials.

A new space is a file in tune_spaces/spaces that defines SPACE, a `Space` or `Kinds`. The file's name is the
space's name.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal
from zlib import crc32

from pydantic import ValidationError

from npdraw_dist.config.load import build, explain, merge, names_in, read_preset, require_known, with_changes
from npdraw_dist.config.registry import KINDS
from npdraw_dist.config.schema import OF_PARTS, Experiment
from npdraw_dist.system.errors import UserError

# The keys of a report to Tune: the metric that ranks the trials, and the images seen so far.
SCORE, IMAGES = "score", "images"

Value = str | float | bool | None
# Dotted setting, such as `bank.size` -> value.
Settings = Mapping[str, Value]
# Field -> index into its Choice, or number in its Range. The empty point changes nothing in the base config.
Point = Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """One of `values`, each a value of the setting or a mapping of settings that change together."""

    values: tuple[Value | Settings, ...]

    def at(self, u: float) -> int:
        """The index of the value for a uniform draw u in [0, 1)."""
        return min(int(u * len(self.values)), len(self.values) - 1)

    def ends(self, name: str) -> range:
        """All indices of the field `name`. Raises UserError if it has no values."""
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
        """The number for a uniform draw u in [0, 1)."""
        if self.log:
            return float(math.exp(math.log(self.low) + u * math.log(self.high / self.low)))
        return float(self.low + u * (self.high - self.low))

    def ends(self, name: str) -> tuple[float, float]:
        """The smallest and the largest number of the field `name`. Raises UserError on an empty range."""
        if not (self.low < self.high and (self.low > 0 or not self.log)):
            raise UserError(f"{name} cannot have a range from {self.low} to {self.high}")
        return self.low, self.high


@dataclass(frozen=True)
class SweepMetric:
    """A column of the results that can rank the trials, in nats per validation image; less is better.

    While `stage` trains, Tune receives `sign` times the reported metric `key` as the score.
    """

    stage: Literal["prior", "vae"]
    key: str
    sign: int


SWEEP_METRICS = {
    "valid_nll": SweepMetric("vae", "valid/elbo", -1),
    "valid_prior_nll": SweepMetric("prior", "valid/nll", 1),
}


def require_metric(name: str) -> None:
    """Raises UserError unless `name` is a key of SWEEP_METRICS; test numbers never rank trials."""
    why = "; test numbers are reported but never decide" if name.startswith("test") else ""
    require_known("--metric", name, list(SWEEP_METRICS), why)


@dataclass(frozen=True)
class Space:
    """The settings that a sweep varies. Raises UserError on a field or a setting that no config can have.

    fields: dotted setting (or any name, if the choices are mappings) -> its Choice or Range.
    samples: default of --num-samples. budgets: preset -> settings that override it, such as vae.images.
    metric: the key of SWEEP_METRICS that ranks the trials.
    curve: if true, no trial is chosen. Every trial runs to its end and is scored on the test split too, and
    curve.png shows the NLL against the number of training images, with lines for each kind of model.
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
        """Dotted setting -> its value at a point."""
        settings: dict[str, Value] = {}
        for name, coordinate in point.items():
            domain = self.fields[name]
            value = domain.values[int(coordinate)] if isinstance(domain, Choice) else coordinate
            settings |= value if isinstance(value, Mapping) else {name: value}
        return settings

    def base(self, preset: str, *layers: Mapping[str, Any]) -> Experiment:
        """The config of a preset, overridden by the space's budgets and then by the nested `layers`."""
        return build(merge(read_preset(preset), nested(self.budgets.get(preset, {})), *layers))

    def experiment(self, base: Experiment, point: Point) -> Experiment:
        """A trial's config, `base` with the settings at `point`. Raises UserError if it is impossible."""
        return with_changes(base, nested(self.settings(point)))

    def points(self, seed: int) -> Iterator[Point]:
        """Yields the empty point, then a scrambled Sobol sequence, which depends on the seed alone.

        Every value of a field occurs about equally often, even in few trials.
        """
        from scipy.stats import qmc  # slow to import, and --help needs no points

        yield {}
        sequence = qmc.Sobol(len(self.fields), scramble=True, seed=seed)
        while True:
            row = sequence.random(1)[0]
            yield {name: domain.at(u) for (name, domain), u in zip(self.fields.items(), row, strict=True)}

    def latin(self, seed: int, count: int) -> list[Point]:
        """`count` points of a Latin hypercube (McKay et al. 1979), which depend on the seed alone.

        Each field has its own random order, in which all its values occur equally often. (In 6 points of a
        Sobol sequence, fields with two values always change together.) A field with the same name and domain
        has the same values in every space.
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
    """The space of a comparison. All kinds of models have equally many trials of equal length.

    spaces: kind of model, or a variant such as `npdraw-lstm` -> the ranges of its trials. common: ranges for
    kinds that are not in `spaces`; each such kind adds the ranges in its `Kind.searched`. settings: settings
    that override the preset for all kinds. core_seconds: fraction of the training images -> length of a
    training in counted seconds (`trainings.core_seconds`). seeds: data.source -> number of seeds for the best
    trial of a kind; `other_seeds` for all other sources.
    """

    spaces: Mapping[str, Space]
    settings: Settings
    core_seconds: Mapping[float, float]
    trials: int = 10
    preset: str = "mnist_cpu"
    seeds: Mapping[str, int] = field(default_factory=dict)
    other_seeds: int = 3
    common: Mapping[str, Choice | Range] = field(default_factory=dict)

    def seconds_of(self, fraction: float) -> float:
        """The core-seconds for the smallest fraction in `core_seconds` that is at least `fraction`.

        Raises UserError if there is none.
        """
        larger = [one for one in self.core_seconds if one >= fraction]
        if not larger:
            raise UserError(
                f"the space has no core-seconds for the fraction {fraction:g}; give --core-seconds"
            )
        return self.core_seconds[min(larger)]

    def of(self, kind: str) -> Space:
        """The space of one kind."""
        if kind in self.spaces:
            return self.spaces[kind]
        own = {name: Choice(tuple(values)) for name, values in KINDS[kind].searched.items()}
        return Space({**self.common, **own}, preset=self.preset)

    def chosen(self, names: str | None) -> list[str]:
        """The kinds that `names`, the value of --kinds, lists; if None, all in `spaces`. Raises UserError."""
        if names is None:
            return list(self.spaces)
        others = [kind for kind in KINDS if self.common and kind not in (*OF_PARTS, *self.spaces)]
        found = names_in("--kinds", "kind", names, [*self.spaces, *others])
        if len(found) < 2:
            raise UserError("--kinds needs two kinds or more, such as npdraw,vae")
        return found


def _require_possible(settings: Settings) -> None:
    """Raises UserError on an unknown key or a wrong value. Each trial checks if its settings fit together."""
    try:
        Experiment.model_validate(nested(settings))
    except ValidationError as error:
        if any(item["type"] != "value_error" for item in error.errors()):
            raise UserError(explain(error)) from None


def refuse_settings(flags: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
    """Raises UserError with the reason `why` if the nested `flags` set one of the dotted `keys`."""
    for key in keys:
        section, _, name = key.rpartition(".")
        if name in (flags.get(section, {}) if section else flags):
            raise UserError(f"--{key} {why}; leave it out")


def require_scratch(base: Experiment) -> None:
    """Raises UserError if the trials would start from a model or a bank."""
    if base.init.has_parts:
        raise UserError("section init is set, but the trials of a sweep train from scratch; leave it out")


def nested(settings: Settings) -> dict[str, Any]:
    """Nests dotted settings: {"bank.size": 50} -> {"bank": {"size": 50}}."""
    pairs = [(*key.rpartition("."), value) for key, value in settings.items()]
    return merge(
        *({section: {name: value}} if section else {name: value} for section, _, name, value in pairs)
    )


def setting_of(experiment: Experiment, key: str) -> Value:
    """The value of a dotted setting; for parse.steps the number of steps T, even if the setting is None."""
    if key == "parse.steps":
        return experiment.steps
    value: Value = reduce(getattr, key.split("."), experiment)  # type: ignore[assignment]
    return value
