"""Imports from the installed package every module that the source has, which a wheel may lack."""

import importlib
from pathlib import Path

import npdraw_dist

ROOT = Path(__file__).resolve().parents[2]


def modules(root: Path = ROOT) -> list[str]:
    """The dotted names of what is installed."""
    files = sorted(path for room in ("npdraw_dist", "tune_spaces") for path in (root / room).rglob("*.py"))
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    return [name.removesuffix(".__init__") for name in names]


if __name__ == "__main__":
    names = modules()
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules imported from {npdraw_dist.__file__}")
