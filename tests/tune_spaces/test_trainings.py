"""The trainings of a comparison as processes: one thread, counted seconds, and an end with their sweep."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from tests.helpers.fake_trainings import compare
from tests.helpers.processes import is_same, stat, until
from tests.helpers.spaces import load_kinds
from tune_spaces import trainings
from tune_spaces.budgets import base_config, draw_trials
from tune_spaces.trainings import GUARD, one_by_one, tied

Patch = pytest.MonkeyPatch
WAITING = """
import sys, time
print("begun", *sys.argv[1:], flush=True)
time.sleep(60)
"""
# Starts the command with its own process id in place of another one.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([str(os.getpid()) if word == sys.argv[1] else word for word in sys.argv[2:]])
print(child.pid, flush=True)
child.wait()
"""


def test_a_training_has_one_thread_and_no_ray(tmp_path: Path, monkeypatch: Patch) -> None:
    space = load_kinds("comparison")
    (drawn,) = draw_trials(space, base_config(space, None, {}, {}), ["vae"], 1)
    job = drawn.with_images(640, "trials", "vae-0")
    started: dict[str, Any] = {}

    def fake_run(command: list[str], env: dict[str, str], **other: Any) -> SimpleNamespace:
        started.update(command=command, env=env)
        return SimpleNamespace(returncode=2, stderr="a warning\nerror: no such file\n")

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(trainings.subprocess, "run", fake_run)
    run = Store.open(str(tmp_path), "c")
    assert trainings.train(run, job, with_scores=False) == "trials/vae-0: no such file"
    assert run.read_json("results", "vae-0.json")["reason"] == "no such file"
    assert started["env"]["OMP_NUM_THREADS"] == "1"
    assert not any(name.startswith("RAY_") for name in started["env"])
    assert started["command"][started["command"].index("--stages") + 1] == "data,vae"
    assert job.experiment.scale.in_process


@pytest.mark.parametrize(
    "end",
    [
        *(f"s.signal(s.{name}, s.SIG_DFL); os.kill(os.getpid(), s.{name})" for name in ("SIGTERM", "SIGINT")),
        "os.kill(os.getpid(), s.SIGKILL)",  # as a system does that is out of memory
        f"sys.exit({os.EX_TEMPFAIL})",
    ],
)
def test_a_stopped_training_has_not_failed(tmp_path: Path, monkeypatch: Patch, end: str) -> None:
    """Nor one that was killed, or whose storage failed."""
    program = f"import os, signal as s, sys; {end}"
    monkeypatch.setattr(trainings, "tied", lambda *_: [sys.executable, "-S", "-c", program])
    with pytest.raises(UserError, match=r"3 of 3 trainings were stopped, such as rates/npdraw-0-start"):
        compare(tmp_path, one_by_one, num_samples=1)
    assert not (tmp_path / "c" / "results").exists()
    assert len(compare(tmp_path, num_samples=1)["spent"]) == 3


@pytest.mark.skipif(shutil.which(GUARD[0]) is None, reason="no setpriv")
def test_a_training_neither_outlives_its_parent_nor_begins_without_it(tmp_path: Path) -> None:
    waiting = tmp_path / "waiting.py"
    waiting.write_text(WAITING)
    line, me = tied(sys.executable, str(waiting), "a flag"), str(os.getpid())
    parent = subprocess.Popen([sys.executable, "-c", PARENT, me, *line], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "begun a flag\n"  # of the child: the flags reach the program
        start = stat(child)[19]
        parent.kill()
        parent.wait()
        until(lambda: not is_same(child, start), 30)

    line[line.index(me)] = "1"  # of another process
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (143, "")
