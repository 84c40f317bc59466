"""Real sweeps of tiny trials that are killed, fail, and share, each with a Ray of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from npdraw_dist.system.lease import is_lease
from tests.helpers.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LIMIT_S = 600
SMALLER = """
from tune_spaces.space import Choice, Space
from tune_spaces.spaces.smoke import SPACE as SMOKE

TINY = dict(SMOKE.budgets["digits"])
"""
CURVE = """
TINY |= {"baseline.width": 16, "baseline.hidden": 16}
WHICH = (("npdraw", 0.2), ("vae", 0.2), ("vae", 0.05), ("air", 0.2))
CASES = tuple({"model.kind": kind, "data.fraction": fraction} for kind, fraction in WHICH)
SPACE = Space({"case": Choice(CASES)}, samples=4, budgets={"digits": {**TINY, **CASES[0]}}, curve=True)
"""
RATES = """
RATES = Choice((2e-3, 1.0, 1e30, 2.0))
SPACE = Space({"prior.learning_rate": RATES}, 4, budgets=SMOKE.budgets, metric="valid_prior_nll")
"""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def command(storage: Path, *flags: str) -> list[str]:
    own = ["--storage", str(storage), "--name", "s"]
    return [sys.executable, "-m", "tune_spaces.sweep", *own, *flags]


def run(storage: Path, *flags: str) -> str:
    """What a sweep prints, in a process of its own."""
    words = command(storage, *flags)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def rows_of(storage: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(storage / "s" / "results.parquet").to_pylist())


def run_space(storage: Path, text: str, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """The results of a sweep over a space, and what it printed."""
    (storage / "space.py").write_text(text)
    printed = run(storage, "--space", str(storage / "space.py"), *flags)
    return rows_of(storage), printed


def built(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (folder / "cache").iterdir())


def written(folder: Path) -> dict[str, int]:
    """File -> time of writing."""
    files = [path for path in folder.rglob("*") if path.is_file() and not is_lease(str(path))]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_a_sweep_that_was_killed_repeats_nothing_that_was_done(tmp_path: Path) -> None:
    """Killed once its first trial had finished; run again, and a third time, when it only answers."""
    folder, log = tmp_path / "s", tmp_path / "log"
    flags = ["--space", "smoke", "--scheduler", "none"]
    alone = [*flags, "--max-concurrent-trials", "1"]
    with log.open("w") as out:
        process = subprocess.Popen(command(tmp_path, *alone), cwd=ROOT, stdout=out, stderr=out)
    try:
        until(lambda: list(folder.glob("results/*.json")) or process.poll() is not None, LIMIT_S)
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()
    (first,) = folder.glob("results/*.json")
    before = written(folder)
    assert "2 trials: 1 are done" in run(tmp_path, *alone)
    after = written(folder)
    kept = [
        name
        for name in before
        if any(k in name for k in (first.stem, "/cache/data-", "/cache/bank-", "/cache/parse-"))
    ]
    assert {"model.safetensors", "bank.safetensors"} <= {Path(name).name for name in kept}
    assert [name for name in kept if after[name] != before[name]] == []
    assert [built(folder).count(stage) for stage in ("data", "bank", "parse")] == [1, 1, 1]
    rows = rows_of(tmp_path)
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert min(min(row["bits_per_dim"], row["valid_nll"], row["seconds"]) for row in rows) > 0
    assert rows[0]["valid_nll"] <= rows[1]["valid_nll"]
    trials = written(folder / "trials")
    assert "best.yaml" in run(tmp_path, *flags)
    assert written(folder / "trials") == trials


def test_trials_that_fail_or_are_stopped_do_not_end_the_sweep(tmp_path: Path) -> None:
    """Each trial needs all CPUs: what is stopped from outside has to give its workers back."""
    flags = ["--max-concurrent-trials", "1", "--scheduler", "asha"]
    rows, printed = run_space(tmp_path, SMALLER + RATES, *flags)
    assert "failed: the loss of stage prior turned non-finite" in printed
    ends = {row["prior.learning_rate"]: row for row in rows}
    assert len(ends) == 4
    assert ends[2e-3]["status"] == "finished"
    assert ends[1e30]["status"] == "failed"
    assert "non-finite" in ends[1e30]["reason"]
    poor = [ends[1.0]["status"], ends[2.0]["status"]]
    assert "stopped" in poor, poor
    assert set(poor) <= {"stopped", "finished"}


def test_two_trials_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that Ray only pretends. Their stages, samples and scores have half of it each."""
    flags = ["--space", "smoke", "--scheduler", "none", "--scale.gpus_per_worker", "0.5"]
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 2, "GPU": 1}))
    printed = run(tmp_path, *flags)
    assert "2 trials: 2 at once, each 1 worker(s) of 1 CPU(s) and 1/2 of a GPU" in printed
    assert [row["status"] for row in rows_of(tmp_path)] == ["finished", "finished"]


def test_a_curve_of_kinds(tmp_path: Path) -> None:
    """Each trial runs the stages of its own kind to their end, and is scored on both splits."""
    rows, _ = run_space(tmp_path, SMALLER + CURVE)
    assert sorted(row["model.kind"] for row in rows) == ["air", "npdraw", "vae", "vae"]
    assert {row["status"] for row in rows} == {"finished"}
    counts = {row["train_images"] for row in rows}
    assert len(counts) == 2
    assert max(counts) / min(counts) == pytest.approx(4, rel=0.3)
    for row in rows:
        assert (row["valid_prior_nll"] is None) == (row["model.kind"] != "npdraw")
        trial = tmp_path / "s" / "trials" / row["trial"]
        metrics = json.loads((trial / "metrics.json").read_text())
        assert (row["test_nll"], row["valid_nll"]) == (metrics["test/nll_iwae"], metrics["valid/nll_iwae"])
        assert (trial / "test_split.json").exists()
        config = json.loads((trial / "model" / "config.json").read_text())
        assert config["spec"]["kind"] == row["model.kind"]
    assert (tmp_path / "s" / "curve.png").exists()
    # One set of images for three kinds, and one of the smaller share.
    assert built(tmp_path / "s") == ["bank", "data", "data", "parse", "prior"]
