"""A search space as data: which settings of the config vary, and how a trial is drawn from them."""

import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from scipy.stats import qmc

from npdraw_dist.config.load import build, known_keys, merge, nearest
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from tune_spaces import spaces

# Field -> index of its choice, or its number. The empty point is the preset itself.
Point = dict[str, Any]

DRAWS = 100  # draws for each new trial before a space counts as exhausted


@dataclass(frozen=True)
class Choice:
    """One of `values`: of the setting, or mappings of several settings that change together."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both positive where `log` (uniform in the logarithm)."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Space:
    """What a sweep varies.

    fields: dotted setting (or any name, where the choices are mappings) -> its domain.
    samples: trials where --num-samples is not given. budgets: preset -> settings over it, such as
    training budgets. metric: what decides, of `tune_spaces.records.METRICS`.
    """

    fields: Mapping[str, Choice | Range]
    samples: int
    preset: str = "digits"
    budgets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metric: str = "valid_nll"

    @property
    def keys(self) -> list[str]:
        """The dotted settings that vary, in the order of the fields."""
        found: dict[str, None] = {}
        for name, domain in self.fields.items():
            together = isinstance(domain, Choice) and isinstance(domain.values[0], Mapping)
            for value in domain.values if isinstance(domain, Choice) and together else [{name: None}]:
                found |= dict.fromkeys(value)
        return list(found)

    def settings(self, point: Point) -> dict[str, Any]:
        """The dotted settings at a point."""
        settings: dict[str, Any] = {}
        for name, place in point.items():
            domain = self.fields[name]
            value = domain.values[int(place)] if isinstance(domain, Choice) else place
            settings |= value if isinstance(value, Mapping) else {name: value}
        return settings

    def experiment(self, base: Mapping[str, Any], point: Point) -> Experiment:
        """The config of a trial: `base` with the settings of `point`. Raises UserError in one line."""
        return build(merge(base, nested(self.settings(point))))

    def points(self, seed: int) -> Iterator[Point]:
        """The empty point, then a scrambled Sobol sequence: the same points for the same seed.

        So every value of a field comes about equally often, however few trials there are.
        """
        yield {}
        sequence = qmc.Sobol(len(self.fields), scramble=True, seed=seed)
        while True:
            row = sequence.random(1)[0]
            yield {name: _at(domain, u) for (name, domain), u in zip(self.fields.items(), row, strict=True)}


def _at(domain: Choice | Range, u: float) -> Any:
    """The value (the index of a choice) at u in [0, 1)."""
    if isinstance(domain, Choice):
        return min(int(u * len(domain.values)), len(domain.values) - 1)
    if domain.log:
        return float(math.exp(math.log(domain.low) + u * math.log(domain.high / domain.low)))
    return float(domain.low + u * (domain.high - domain.low))


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"bank.size": 50} -> {"bank": {"size": 50}}."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        result = merge(result, {section: {name: value}} if section else {name: value})
    return result


def setting(experiment: Experiment, key: str) -> Any:
    """The value of a dotted setting; T for parse.steps, which may be left to the grid."""
    if key == "parse.steps":
        return experiment.steps
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part)
    return value


def space_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(spaces.__path__))


def load_space(name: str) -> Space:
    """The space of tune_spaces/spaces/<name>.py, or of a Python file elsewhere, which names it SPACE.

    Raises UserError where there is none, or where it names an unknown setting.
    """
    if name.endswith(".py"):
        module = _module_of(Path(name))
    elif name in space_names():
        module = importlib.import_module(f"{spaces.__name__}.{name}")
    else:
        names = space_names()
        raise UserError(
            f"unknown space {name!r}{nearest(name, names)} (known: {', '.join(names)}; or a .py file)"
        )
    space = getattr(module, "SPACE", None)
    if not isinstance(space, Space):
        raise UserError(f"--space {name} defines no SPACE = Space(...)")
    check(space, name)
    return space


def _module_of(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"--space {path} is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--space {path} cannot be read: {type(error).__name__}: {error}") from None
    return module


def check(space: Space, name: str) -> None:
    """Raises UserError on a field without values and on a setting that the config does not have."""
    known = list(known_keys(Experiment))
    for field_name, domain in space.fields.items():
        if isinstance(domain, Choice) and not domain.values:
            raise UserError(f"space {name}: {field_name} has no values")
        if isinstance(domain, Range) and not (
            domain.low < domain.high and (domain.low > 0 or not domain.log)
        ):
            raise UserError(f"space {name}: {field_name} has no range from {domain.low} to {domain.high}")
    budgets = [key for settings in space.budgets.values() for key in settings]
    for key in [*space.keys, *budgets]:
        if key not in known:
            raise UserError(f"space {name} names an unknown config key {key}{nearest(key, known)}")
    if not space.fields:
        raise UserError(f"space {name} has no fields")
