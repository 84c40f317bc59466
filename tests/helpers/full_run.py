"""python -m tests.helpers.full_run SECONDS JUNIT_XML: prints what `.ci/last-full-run.json` holds."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from npdraw_dist.bench.machine import processor


def git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()


def tests(junit: Path) -> dict[str, int]:
    """Tests by how they ended. An error of a fixture counts as a failure."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    total, skipped, failures, errors = (
        sum(int(suite.attrib[key]) for suite in suites) for key in ("tests", "skipped", "failures", "errors")
    )
    failed = failures + errors
    return {"passed": total - skipped - failed, "skipped": skipped, "failed": failed}


if __name__ == "__main__":
    changed = git("status", "--porcelain", "--untracked-files=no")
    found = {
        "commit": git("rev-parse", "HEAD") + ("+" if changed else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "tests": tests(Path(sys.argv[2])),
        "seconds": int(sys.argv[1]),
    }
    print(json.dumps(found, indent=2))
