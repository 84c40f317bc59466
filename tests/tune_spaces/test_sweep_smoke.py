"""Real sweeps of tiny trials: killed half-way and run again; with a trial that fails."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from npdraw_dist import sample, train
from npdraw_dist.config.load import resolve, with_changes
from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.lease import is_lease
from npdraw_dist.training.launch import start_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LIMIT_S = 400


def command(storage: Path, *flags: str) -> list[str]:
    own = ["--storage", str(storage), "--name", "s"]
    return [sys.executable, "-m", "tune_spaces.sweep", *own, *flags]


def run(*argv: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@dataclass(frozen=True)
class Killed:
    """A smoke sweep whose process was killed once its first trial had finished, then run again."""

    folder: Path
    first: str  # the trial that had finished
    before: dict[str, int]  # file -> time of writing, at the kill
    printed: str  # by the second run


def written(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not is_lease(str(path))
    }


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    storage = tmp_path_factory.mktemp("sweeps")
    folder = storage / "s"
    flags = ["--space", "smoke", "--max-concurrent-trials", "1", "--scheduler", "none"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (storage / "log").open("w") as log:
        process = subprocess.Popen(
            command(storage, *flags), cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + LIMIT_S
            while not list(folder.glob("results/*.json")):
                assert process.poll() is None, (storage / "log").read_text()
                assert time.monotonic() < deadline, (storage / "log").read_text()
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    (first,) = folder.glob("results/*.json")
    before = written(folder)
    return Killed(folder, first.stem, before, run(*command(storage, *flags)))


def test_the_finished_trial_is_not_repeated(killed: Killed) -> None:
    assert "2 trials: 1 are done" in killed.printed
    after = written(killed.folder)
    mine = [name for name in killed.before if killed.first in name]
    assert any(name.endswith("model.safetensors") for name in mine)
    assert [name for name in mine if after[name] != killed.before[name]] == []
    table = pq.read_table(killed.folder / "results.parquet")
    assert table.column("status").to_pylist() == ["finished", "finished"]
    assert sorted(table.column("prior.depth").to_pylist() + table.column("vae.decoder_width").to_pylist())[
        :1
    ] == [1]
    for name in ("bits_per_dim", "valid_nll", "seconds"):
        assert min(table.column(name).to_pylist()) > 0


def test_bank_and_parse_were_built_once(killed: Killed) -> None:
    cached = sorted(path.name.partition("-")[0] for path in (killed.folder / "cache").iterdir())
    assert cached.count("bank") == cached.count("parse") == 1
    after = written(killed.folder)
    shared = [n for n in killed.before if "/cache/bank-" in n or "/cache/parse-" in n]
    assert any(name.endswith("bank.safetensors") for name in shared)
    assert [name for name in shared if after[name] != killed.before[name]] == []


def test_the_best_config_trains(killed: Killed, capsys: pytest.CaptureFixture[str]) -> None:
    best = killed.folder / "best.yaml"
    table = pq.read_table(killed.folder / "results.parquet")
    trial = table.column("trial").to_pylist()[0]
    assert table.column("valid_nll").to_pylist() == sorted(table.column("valid_nll").to_pylist())
    experiment = resolve("mnist", best, {})
    assert experiment.prior.depth == table.column("prior.depth").to_pylist()[0]
    kept = resolve("mnist", killed.folder / "trials" / trial / "config.yaml", {})
    # The sweep closed the test split; training its best config opens it.
    assert (kept.eval.split, experiment.eval.split) == ("valid", "test")
    closed = with_changes(experiment, {"eval": {"split": "valid"}})
    assert closed.model_copy(update={"scale": kept.scale}) == kept
    train.main(["--config", str(best), "--dry-run"])
    assert "depth" in capsys.readouterr().out


def test_a_trials_model_draws(killed: Killed, tmp_path: Path) -> None:
    model = killed.folder / "trials" / killed.first / "model"
    sample.main(["--model", str(model), "--n", "4", "--out", str(tmp_path)])
    assert (tmp_path / "samples.png").is_file()


def test_the_plots_are_there(killed: Killed) -> None:
    for name in ("fields.png", "parallel.png", "pareto.png"):
        assert (killed.folder / name).stat().st_size > 5_000


def test_run_a_third_time_it_only_answers(killed: Killed) -> None:
    before = written(killed.folder / "trials")
    started = time.monotonic()
    assert "best.yaml" in run(*command(killed.folder.parent, "--space", "smoke", "--scheduler", "none"))
    assert time.monotonic() - started < 60
    assert written(killed.folder / "trials") == before


@pytest.fixture
def no_other_ray() -> Iterator[None]:
    """Ends the Ray that other tests share, for the time of the test.

    Ray Train frees the workers of a stopped trial through Ray's state API, which refuses to choose
    between several Rays on a machine.
    """
    running = ray.is_initialized()
    ray.shutdown()
    yield
    if running:
        start_ray(ScaleConfig(), object_store_mb=128)


def test_trials_that_fail_or_are_stopped_do_not_end_the_sweep(no_other_ray: None, tmp_path: Path) -> None:
    """Each trial needs all CPUs: what is stopped from outside has to give its workers back."""
    space = tmp_path / "rates.py"
    space.write_text(
        "from tune_spaces.space import Choice, Space\n"
        "from tune_spaces.spaces.smoke import SPACE as SMOKE\n"
        "RATES = Choice((2e-3, 1e-9, 1e30, 1e-8))\n"
        "SPACE = Space({'prior.learning_rate': RATES}, 4, budgets=SMOKE.budgets, metric='valid_prior_nll')\n"
    )
    flags = ["--space", str(space), "--max-concurrent-trials", "1", "--scheduler", "asha"]
    printed = run(*command(tmp_path, *flags))
    assert "failed: the loss of stage prior turned non-finite" in printed
    rows = pq.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    ends = {row["prior.learning_rate"]: row for row in rows}
    assert len(ends) == 4
    assert ends[2e-3]["status"] == "finished"
    assert ends[1e30]["status"] == "failed"
    assert "non-finite" in ends[1e30]["reason"]
    slow = [ends[1e-9]["status"], ends[1e-8]["status"]]
    assert "stopped" in slow, slow
    assert set(slow) <= {"stopped", "finished"}
