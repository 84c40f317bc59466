"""python -m tests.mutants [--only WORD] [--out FILE]: runs the default layer on a copy with each mutant.

Prints and writes which test kills each. Exits with 1 if one survives that names no slow test.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("npdraw_dist", "tune_spaces", "cluster")
# This test looks for each mutant's text in the code, so it fails for any mutant: that is no kill.
DEFAULT_LAYER = ("--ignore", "tests/mutants/test_mutants.py")


class Mutant(NamedTuple):
    """One breakage, as mutants.yaml describes it."""

    name: str
    before: str
    after: str
    tests: str
    slow: str = ""


MUTANTS = [
    Mutant(**values) for values in yaml.safe_load(Path(__file__).with_name("mutants.yaml").read_text())
]


def place(mutant: Mutant, root: Path = ROOT) -> Path:
    """The one file that has the mutant's text, once. Raises ValueError otherwise."""
    files = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    found = [path for path in files for _ in range(path.read_text().count(mutant.before))]
    if len(found) != 1:
        raise ValueError(
            f"{mutant.name}: its text stands in {len(found)} places, not in one: {mutant.before!r}"
        )
    return found[0]


def killer(copy: Path, *words: str) -> str | None:
    """The first test that fails; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return found[1] if found else done.stdout[-500:] + done.stderr[-500:]


def run(mutant: Mutant, copy: Path) -> dict[str, object]:
    """How the mutant ended."""
    path, start = place(mutant, copy), time.monotonic()
    whole = path.read_text()
    path.write_text(whole.replace(mutant.before, mutant.after))
    try:
        by = killer(copy, "-n", "0", "-m", "not ray and not slow", *mutant.tests.split())
        by = by or killer(copy, *DEFAULT_LAYER)
        slow = None
        if by is None and mutant.slow:
            slow = killer(copy, "-n", "0", "-m", "slow or not slow", mutant.slow)
    finally:
        path.write_text(whole)
    return {"killed_by": by, "slow": slow, "seconds": round(time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this text")
    parser.add_argument("--out", type=Path, help="a JSON file of the results")
    flags = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        for mutant in MUTANTS:
            if flags.only in mutant.name:
                results[mutant.name] = found = run(mutant, copy)
                print(f"{mutant.name}: {found['killed_by'] or found['slow'] or 'SURVIVES'}", flush=True)
                if flags.out:
                    flags.out.write_text(json.dumps(results, indent=2) + "\n")
    default = sum(result["killed_by"] is not None for result in results.values())
    print(f"{default} of {len(results)} killed by the default layer")
    if any(not (result["killed_by"] or result["slow"]) for result in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
