"""The spaces of the sweeps by name, of the kind that a test expects."""

from tune_spaces import options
from tune_spaces.space import Kinds, Space


def load_space(name: str) -> Space:
    found = options.load_space(name)
    assert isinstance(found, Space)
    return found


def load_kinds(name: str) -> Kinds:
    found = options.load_space(name)
    assert isinstance(found, Kinds)
    return found
