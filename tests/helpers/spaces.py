"""The spaces of the sweeps by name, of the kind that a test expects, and the plan of a sweep."""

from pathlib import Path
from typing import Any

from npdraw_dist.pipeline.store import Store
from tune_spaces import options
from tune_spaces.driver import base_config
from tune_spaces.space import Kinds, Space
from tune_spaces.trials import Plan


def load_space(name: str) -> Space:
    found = options.load_space(name)
    assert isinstance(found, Space)
    return found


def load_kinds(name: str) -> Kinds:
    found = options.load_space(name)
    assert isinstance(found, Kinds)
    return found


def plan_in(folder: Path, name: str, flags: dict[str, Any] | None = None) -> Plan:
    """The plan of the sweep `s` in a folder."""
    space = load_space(name)
    base = base_config(options.Options(space=name), space, flags or {})
    return Plan(Store.open(str(folder), "s"), base, space, space.metric)
