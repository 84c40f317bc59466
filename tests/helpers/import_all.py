"""Imports from the installed package every module that the source has, which a wheel may lack."""

import importlib
from pathlib import Path

import npdraw_dist

ROOT = Path(__file__).resolve().parents[2]
files = sorted(path for room in ("npdraw_dist", "tune_spaces") for path in (ROOT / room).rglob("*.py"))
for file in files:
    importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
print(f"{len(files)} modules imported from {npdraw_dist.__file__}")
