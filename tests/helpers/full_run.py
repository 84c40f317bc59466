"""python -m tests.helpers.full_run SECONDS JUNIT_XML...: prints what `.ci/last-full-run.json` holds."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]


class Counts(TypedDict):
    """Tests by how they ended."""

    passed: int
    skipped: int
    failed: int


class FullRun(TypedDict):
    """One run of all tests."""

    commit: str  # with "+" if files differ from it
    date: str  # UTC
    processor: str
    cores: int
    memory_gb: int
    python: str
    tests: Counts
    seconds: int


def counts(results: Sequence[Path]) -> Counts:
    """Of result files of pytest. An error of a fixture counts as a failure."""
    suites = [suite for junit in results for suite in ElementTree.parse(junit).getroot().iter("testsuite")]
    total, skipped, failures, errors = (
        sum(int(suite.attrib[key]) for suite in suites) for key in ("tests", "skipped", "failures", "errors")
    )
    failed = failures + errors
    return {"passed": total - skipped - failed, "skipped": skipped, "failed": failed}


def commit(root: Path = ROOT) -> str:
    """HEAD, and "+" if tracked files differ from it."""
    head, changes = (
        subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
    return head + ("+" if changes else "")


def processor() -> str:
    """Its name as Linux tells it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def full_run(results: Sequence[Path], seconds: int, root: Path = ROOT) -> FullRun:
    return {
        "commit": commit(root),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "tests": counts(results),
        "seconds": seconds,
    }


if __name__ == "__main__":
    print(json.dumps(full_run([Path(name) for name in sys.argv[2:]], int(sys.argv[1])), indent=2))
