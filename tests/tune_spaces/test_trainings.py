"""The trainings of a comparison as processes: one thread, counted seconds, and an end with their sweep."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store
from tests.helpers.fake_trainings import compare, plan_of
from tests.helpers.processes import is_same, stat, until
from tests.helpers.spaces import load_kinds
from tune_spaces import sweep, trainings
from tune_spaces.budgets import Job, base_config, draw_trials
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
TARGET_S = 3.0
SPACE = f"""
from tune_spaces.space import Choice, Kinds, Space

SETTINGS = {{
    **{{"train.batch_size": 32, "train.micro_batch": 32, "train.select": "best", "train.patience": 0}},
    **{{"baseline.width": 16, "baseline.hidden": 16, "eval.images": 16, "eval.k": 2}},
}}
SPACE = Kinds(
    {{"vae": Space({{"baseline.latents": Choice((8,))}})}}, SETTINGS, {{1.0: {TARGET_S}}},
    trials=1, preset="digits", other_seeds=1, longer=(2,),
)
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


def counted(manifests: list[dict[str, Any]]) -> float:
    return sum(m["core_seconds"] - m.get("validation_core_seconds", 0) for m in manifests)


@pytest.mark.slow
def test_a_real_comparison_spends_its_seconds(tmp_path: Path, monkeypatch: Patch) -> None:
    """No more than a training's processor time is counted. Other work on the cores can double it."""
    train, processor_s = trainings.train, dict[str, float]()

    def timed(run: Store, job: Job, with_scores: bool) -> str:
        before = os.times()
        ended = train(run, job, with_scores)
        after = os.times()
        processor_s[job.path] = sum(after[2:4]) - sum(before[2:4])
        return ended

    monkeypatch.setattr(trainings, "train", timed)
    (tmp_path / "one.py").write_text(SPACE)
    own = ["--space", str(tmp_path / "one.py"), "--storage", str(tmp_path), "--name", "c"]
    sweep.main([*own, "--scale.num_workers", "0"])
    plan, manifests = plan_of(tmp_path), dict[str, list[dict[str, Any]]]()
    for path in ("trials/vae-0", "seeds/vae-0-seed-1", "longer/vae-0-x2"):
        files = [tmp_path / "c" / path / stage / "manifest.json" for stage in ("data", "vae")]
        manifests[path] = [json.loads(file.read_text()) for file in files]
        seconds = counted(manifests[path])
        target_s = TARGET_S * (2 if path.startswith("longer") else 1)
        assert 0.4 * target_s < seconds < 2.5 * target_s, path
        assert seconds < processor_s[path]
    (seed,) = [final for final in plan["finals"] if final["role"] == "seed"]
    stated = {"trials/vae-0": plan["spent"]["vae-0"], seed["run"]: seed["core_seconds"]}
    for path, seconds in stated.items():
        assert seconds == pytest.approx(counted(manifests[path]), abs=0.06)
    assert manifests["longer/vae-0-x2"][1]["images"] == 2 * plan["budgets"]["vae"]
