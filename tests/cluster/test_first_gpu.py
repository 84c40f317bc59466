"""The script for the first GPU: steps are resumed, stopped and not run twice; all of it, small, on a CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import first_gpu, first_gpu_report
from cluster.first_gpu import ATTEMPTS, SOME_LEFT
from cluster.first_gpu_steps import STEPS, Found, Outcome, Step, World, budget, training_flags
from npdraw_dist.core.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "first_gpu_run.sh"

Use = Callable[..., list[str]]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """use(name=outcomes, ...): steps that end so in turn. Returns the names of the steps as they are run."""

    def replace(needs_s: float = 1.0, **endings: list[Found]) -> list[str]:
        ran: list[str] = []

        def step(name: str, left: list[Found]) -> Step:
            def run(world: World, limit_s: float) -> Found:
                ran.append(name)
                world.commands.append(f"python -m {name}")
                return left.pop(0)

            return Step(name, f"Step {name}", run, needs_s, 10 * needs_s)

        made = [step(name, found) for name, found in endings.items()]
        for module in (first_gpu, first_gpu_report):
            monkeypatch.setattr(module, "STEPS", made)
        return ran

    return replace


def call(out: Path, *more: str) -> int:
    """The exit status."""
    try:
        first_gpu.main(["--data", "digits", "--out", str(out), *more])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def done(**figures: float) -> Found:
    return "done", dict(figures), ""


def test_a_finished_step_is_not_run_again(tmp_path: Path, use: Use) -> None:
    ran = use(machine=[done(card=1.0)], bench=[done(speed=2.0)])
    assert call(tmp_path / "out") == 0
    assert call(tmp_path / "out") == 0
    assert ran == ["machine", "bench"]
    result = json.loads((tmp_path / "out" / "first_gpu.json").read_text())
    assert result["left"] == []
    assert result["steps"]["bench"]["figures"] == {"speed": 2.0}
    assert result["steps"]["bench"]["commands"] == ["python -m bench"]


def test_a_failed_step_is_tried_again_and_does_not_stop_the_others(tmp_path: Path, use: Use) -> None:
    broken: Found = ("failed", {}, "it broke")
    ran = use(tests=[broken] * 5, bench=[done()])
    assert call(tmp_path / "out") == SOME_LEFT
    assert call(tmp_path / "out") == 0
    assert call(tmp_path / "out") == 0
    assert ran == ["tests", "bench", "tests"]
    outcome = first_gpu.read_outcomes(tmp_path / "out")["tests"]
    assert (outcome.status, outcome.calls, outcome.note) == ("failed", ATTEMPTS, "it broke")
    assert "| Step tests | failed: it broke | 2 |" in (tmp_path / "out" / "first_gpu.md").read_text()


def test_without_a_gpu_nothing_is_measured(tmp_path: Path, use: Use) -> None:
    none: Found = ("failed", {}, "torch finds no GPU; --small needs none")
    ran = use(machine=[none, none, none], bench=[])
    for _ in range(3):
        with pytest.raises(UserError, match="no GPU"):
            call(tmp_path / "out")
    assert ran == ["machine"] * 3


def test_an_error_is_a_failed_step(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(bench=[])

    def run(world: World, limit_s: float) -> Found:
        return done(x=json.loads("{"))

    monkeypatch.setattr(first_gpu, "STEPS", [Step("bench", "Bench", run, 1, 1)])
    assert call(tmp_path / "out") == SOME_LEFT
    assert first_gpu.read_outcomes(tmp_path / "out")["bench"].note.startswith("JSONDecodeError")


def test_a_long_step_goes_on_in_the_next_call(tmp_path: Path, use: Use) -> None:
    ran = use(train=[("unfinished", {}, "resumes"), done(elbo=-90.0)], sample=[done()])
    assert call(tmp_path / "out") == SOME_LEFT
    assert "Not run yet: train, sample." in (tmp_path / "out" / "first_gpu.md").read_text()
    assert call(tmp_path / "out") == 0
    assert ran == ["train", "train", "sample"]
    assert first_gpu.read_outcomes(tmp_path / "out")["train"].calls == 2


def test_a_call_begins_no_step_that_does_not_fit(tmp_path: Path, use: Use) -> None:
    ran = use(needs_s=100.0, machine=[done()], bench=[done()])
    assert call(tmp_path / "out", "--minutes", "0.01") == SOME_LEFT  # the first one is run in any case
    assert ran == ["machine"]
    assert call(tmp_path / "out", "--minutes", "0.01") == 0
    assert ran == ["machine", "bench"]


def world(out: Path, small: bool = False, **outcomes: Outcome) -> World:
    out.mkdir(exist_ok=True)
    (out / "steps").mkdir(exist_ok=True)
    return World("digits", "mnist", out, small, outcomes, "train")


def test_a_command_is_stopped_as_by_ctrl_c(tmp_path: Path, interruptible: None) -> None:
    patient = (
        "import time\nprint('began', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('saved')"
    )
    here = world(tmp_path)
    assert here.call(["-c", patient], 2.0) == (None, "began\nsaved\n")
    assert here.call(["-c", "print('well')"], 60.0) == (0, "well\n")  # of its own output only
    assert here.call(["-c", "raise SystemExit(3)"], 60.0) == (3, "")
    assert (tmp_path / "logs" / "train.log").read_text() == "began\nsaved\nwell\n"


def test_the_training_takes_as_long_as_the_bench_says_with_equal_flags(
    tmp_path: Path,
) -> None:
    rates = {"prior_step_images_per_s": 4_321.0, "vae_step_images_per_s": 1_000_000.0}
    measured = Outcome("done", 1, 1.0, "", dict(rates))
    assert budget(world(tmp_path, bench=measured), "prior", 10) == 43_000
    assert budget(world(tmp_path), "prior", 10) == 200_000
    flags = training_flags(world(tmp_path, bench=measured))
    named = dict(zip(flags[::2], flags[1::2], strict=True))
    assert named["--prior.images"] == str(int(4_321 * 0.12) * 1000)
    assert named["--vae.images"] == "1200000"  # no more than the preset's
    assert training_flags(world(tmp_path)) == flags


def test_the_steps_fit_into_calls_of_eight_minutes() -> None:
    assert all(step.needs_s <= step.most_s <= 7 * 60 for step in STEPS)
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_the_script_is_sound_and_says_what_it_wants() -> None:
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    asked = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, timeout=30)
    assert asked.returncode == 2
    assert "first_gpu_run.sh DATA OUT" in asked.stdout


@pytest.mark.slow  # minutes: all commands once
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_all_of_it_runs_through_on_a_cpu(tmp_path: Path) -> None:
    argv = ["bash", str(SCRIPT), "digits", str(tmp_path / "out"), "--small"]
    environment = {**os.environ, "PYTHON": sys.executable}
    for _ in range(4):
        finished = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=tmp_path)
        if finished.returncode != SOME_LEFT:
            break
    page = (tmp_path / "out" / "first_gpu.md").read_text()
    assert finished.returncode == 0, finished.stdout + finished.stderr + page
    outcomes = first_gpu.read_outcomes(tmp_path / "out")
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        step.name: "done" for step in STEPS
    }, page
    assert outcomes["bench"].figures["waits_vae_relaxed"] == 0
    assert isinstance(outcomes["editor"].figures["serve_p50_ms_of_1"], float)
    assert (tmp_path / "out" / "samples" / "samples.png").exists()
    again = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert again.returncode == 0
    assert "left: nothing" in again.stdout
    assert "at most" not in again.stdout  # no step began
