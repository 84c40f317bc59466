"""A training ends with the sweep that started it, however that ends."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tune_spaces.trainings import GUARD, tied

WAITING = """
import sys, time
print("begun", *sys.argv[1:], flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from tune_spaces.trainings import tied
child = subprocess.Popen(tied(sys.executable, "-m", "waiting", "a flag"))
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "waiting.py").write_text(WAITING)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(shutil.which(GUARD[0]) is None, reason="no setpriv")
def test_it_ends_when_its_parent_is_killed(environment: dict[str, str]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "begun a flag\n"  # of the child: the flags reach the module
        assert is_running(child)
        parent.kill()
        parent.wait()
        until = time.monotonic() + 30
        while is_running(child) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_running(child)


@pytest.mark.skipif(shutil.which(GUARD[0]) is None, reason="no setpriv")
def test_it_does_not_begin_when_its_parent_is_gone(environment: dict[str, str]) -> None:
    line = tied(sys.executable, "-m", "waiting")
    line[line.index(str(os.getpid()))] = "1"  # of another process
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (143, "")
