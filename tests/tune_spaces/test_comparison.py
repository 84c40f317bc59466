"""A comparison of kinds: as many trials and as much counted time for each, in pieces, without test images."""

import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from npdraw_dist.config.load import build
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.store import Store, fingerprint_of
from tests.helpers.fake_trainings import (
    MS,
    SECONDS,
    FakeTrainings,
    options,
    plan_of,
    the_space,
    third_is_best,
)
from tune_spaces import comparison, sweep, trainings
from tune_spaces.budgets import RATE_IMAGES, ROUGH, Job, Rate, base_config, draw_trials, split_shares
from tune_spaces.trainings import here


@pytest.mark.parametrize("name", ["comparison", "comparison_32"])
def test_each_kind_has_the_same_number_of_trials_on_the_same_images(name: str) -> None:
    space = the_space(name)
    base = base_config(space, None, {}, {"data": {"fraction": 0.1}})
    trials = draw_trials(space, base, list(space.spaces), 6)
    assert Counter(job.kind for job in trials) == dict.fromkeys(space.spaces, 6)
    assert len({fingerprint_of(job.experiment, "vae") for job in trials}) == len(trials)
    assert len({(job.experiment.seed, job.experiment.data) for job in trials}) == 1
    assert {job.experiment.eval.split for job in trials} == {"valid"}
    shared = set.intersection(*(set(ranges.fields) for ranges in space.spaces.values()))
    for number in range(6):  # the same luck for each kind: what all may have is the same in a trial of each
        drawn = [job for job in trials if job.name.endswith(f"-{number}")]
        assert len({tuple(job.settings[key] for key in sorted(shared)) for job in drawn}) == 1
    again = draw_trials(space, base, list(space.spaces), 6)
    assert [job.experiment for job in again] == [job.experiment for job in trials]


@pytest.mark.parametrize("name", ["comparison", "comparison_32"])
def test_every_kind_may_have_what_all_may_have(name: str) -> None:
    space = the_space(name)
    shared = set.intersection(*(set(ranges.fields) for ranges in space.spaces.values()))
    wanted = {
        "vae.learning_rate",
        "vae.dropout",
        "vae.weight_decay",
        "vae.latent_ramp",
        "train.augmented",
        "train.average_images",
    }
    assert shared == wanted
    assert all(len({str(ranges.fields[key]) for ranges in space.spaces.values()}) == 1 for key in shared)


def test_validation_images_are_a_part_of_the_fraction() -> None:
    for fraction in (1.0, 0.1, 0.01):
        shares = split_shares(fraction)
        held = shares["valid_fraction"] * 8000
        trained = (8000 - held) * shares["fraction"]
        assert held == pytest.approx(1600 * fraction)
        assert trained + held == pytest.approx(8000 * fraction)


def test_the_budget_follows_from_two_short_trainings() -> None:
    rate = Rate.of((640, 2560), [0.5 + 0.64, 0.5 + 2.56])
    assert (rate.fixed_s, rate.ms) == (pytest.approx(0.5), pytest.approx(1.0))
    assert rate.images(30.0, build({})) == 29_500 // 128 * 128
    with pytest.raises(UserError, match="no rate can be told"):
        Rate.of((640, 2560), [1.0, 0.9])


@pytest.mark.parametrize("short", [(1.0, 0.9), (0.1, 4.0), (9.0, 9.2), (1.14, 3.06)])
def test_a_probe_is_bounded_however_wrong_the_first_trainings_are(short: tuple[float, float]) -> None:
    """An image costs 1 ms and a training half a second besides; the short ones say other things."""
    images = Rate.of(RATE_IMAGES, short, ROUGH).images(5.0, build({}))
    assert 20 * 128 <= images <= 4 * 5.0 / (short[1] / 2560)
    rate = Rate.of((640, images), (1.14, 0.5 + images / 1000))
    assert rate.ms == pytest.approx(1.0)


def test_a_dry_run_lists_a_line_a_trial(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["--space", "comparison", "--dry-run", "--data.fraction", "0.01"])
    lines = capsys.readouterr().out.splitlines()
    assert Counter(line.split()[0] for line in lines) == dict.fromkeys(the_space().spaces, 6)
    assert all("60 core-seconds" in line for line in lines)


def test_each_training_takes_the_same_counted_time(tmp_path: Path) -> None:
    fake = FakeTrainings(third_is_best)
    comparison.run(options(tmp_path), the_space(), {}, fake)
    plan = plan_of(tmp_path)
    assert len(plan["spent"]) == 18
    for name, spent in plan["spent"].items():
        batch_s = 32 * MS[name.split("-")[0]] / 1000
        assert SECONDS - batch_s - 0.1 <= spent <= SECONDS + 0.1
    seeds = [final for final in plan["finals"] if final["role"] == "seed"]
    assert Counter(final["kind"] for final in seeds) == {"npdraw": 2, "vae": 2, "vqvae": 2}
    assert {round(final["core_seconds"]) for final in seeds} == {round(SECONDS)}


def test_validation_chooses_and_other_seeds_are_reported(tmp_path: Path) -> None:
    comparison.run(options(tmp_path), the_space(), {}, FakeTrainings(third_is_best))
    plan = plan_of(tmp_path)
    assert plan["winners"] == {kind: f"{kind}-2" for kind in ("npdraw", "vae", "vqvae")}
    finals = [(f["run"], f["seed"]) for f in plan["finals"] if f["kind"] == "vae"]
    assert finals == [("seeds/vae-seed-1", 1), ("seeds/vae-seed-2", 2), ("longer/vae-x2", 0)]
    longest = [f for f in plan["finals"] if f["role"] == "longest"]
    assert [f["still_improving"] for f in longest] == [False] * 3  # four times as long brought nothing
    rows = pq.read_table(tmp_path / "c" / "results.parquet").to_pylist()
    assert {row["trial"] for row in rows[:3]} == set(plan["winners"].values())
    assert (tmp_path / "c" / "best.yaml").exists()


def test_the_longest_training_is_bounded_and_a_second_start_may_go_further(tmp_path: Path) -> None:
    def falls(job: Job) -> float:
        return {"x2": 70.0, "x4": 60.0}.get(job.name.split("-")[1], third_is_best(job))

    comparison.run(options(tmp_path, longest=2), the_space(), {}, FakeTrainings(falls))
    longest = [f for f in plan_of(tmp_path)["finals"] if f["role"] == "longest"]
    assert [(f["run"], f["still_improving"]) for f in longest] == [
        (f"longer/{kind}-x2", True) for kind in ("npdraw", "vae", "vqvae")
    ]
    again = FakeTrainings(falls)
    comparison.run(options(tmp_path), the_space(), {}, again)
    assert [job.name for job in again.trained] == ["npdraw-x4", "vae-x4", "vqvae-x4"]
    longest = [f["run"] for f in plan_of(tmp_path)["finals"] if f["role"] == "longest"]
    assert longest == ["longer/npdraw-x4", "longer/vae-x4", "longer/vqvae-x4"]


def test_a_longest_training_that_leaves_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--longest 1 leaves no longer training; the shortest is 2"):
        comparison.run(options(tmp_path, longest=1), the_space(), {}, FakeTrainings(third_is_best))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("flag", ["--kinds=vae,npdraw", "--seeds=2", "--core-seconds=9", "--longest=2"])
def test_flags_of_a_comparison_are_refused_elsewhere(flag: str) -> None:
    with pytest.raises(UserError, match=f"{flag.split('=')[0]} is a flag of --space comparison"):
        sweep.main(["--space", "smoke", "--dry-run", flag])


def test_a_second_start_trains_only_what_is_missing(tmp_path: Path) -> None:
    class Killed(FakeTrainings):
        def __call__(self, run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
            super().__call__(run, jobs[:5] if with_scores else jobs, with_scores)
            if with_scores:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run(options(tmp_path), the_space(), {}, Killed(third_is_best))
    rates = plan_of(tmp_path)["rates"]
    again = FakeTrainings(third_is_best)
    comparison.run(options(tmp_path), the_space(), {}, again)
    assert Counter(job.folder for job in again.trained) == {"trials": 18 - 5, "seeds": 6, "longer": 6}
    assert plan_of(tmp_path)["rates"] == rates  # measured once: budgets stay as they were
    third = FakeTrainings(third_is_best)
    comparison.run(options(tmp_path), the_space(), {}, third)
    assert third.trained == []


@pytest.mark.parametrize("folder", ["rates", "trials", "seeds"])
def test_nothing_is_chosen_among_what_happens_to_be_done(tmp_path: Path, folder: str) -> None:
    class Interrupted(FakeTrainings):
        """Returns early, as Tune does on an interrupt."""

        def __call__(self, run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
            stopped = jobs[0].folder == folder
            super().__call__(run, jobs[:-1] if stopped else jobs, with_scores)

    with pytest.raises(UserError, match=rf"1 of \d+ trainings were stopped, such as {folder}/.*goes on"):
        comparison.run(options(tmp_path), the_space(), {}, Interrupted(third_is_best))
    assert ("winners" in plan_of(tmp_path)) == (folder == "seeds")
    comparison.run(options(tmp_path), the_space(), {}, FakeTrainings(third_is_best))
    assert len(plan_of(tmp_path)["spent"]) == 18


def test_a_trial_that_fails_counts_as_one(tmp_path: Path) -> None:
    fake = FakeTrainings(third_is_best, failing=["vae-2", "npdraw-0-640", "vqvae-1-probe"])
    comparison.run(options(tmp_path), the_space(), {}, fake)
    plan = plan_of(tmp_path)
    assert plan["winners"]["vae"] == "vae-0"
    assert len(plan["trials"]) == 18
    assert not {"trials/npdraw-0", "trials/vqvae-1"} & {job.path for job in fake.trained}
    rows = pq.read_table(tmp_path / "c" / "results.parquet").to_pylist()
    assert [row["reason"] for row in rows if row["status"] == "failed"] == ["loss turned non-finite"] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_was_told_to_end_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    program = f"import os, signal as s; s.signal({number:d}, s.SIG_DFL); os.kill(os.getpid(), {number:d})"
    monkeypatch.setattr(trainings, "tied", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(UserError, match=r"3 of 3 trainings were stopped, such as rates/npdraw-0-640"):
        comparison.run(options(tmp_path, num_samples=1), the_space(), {}, here)
    assert not (tmp_path / "c" / "results").exists()
    comparison.run(options(tmp_path, num_samples=1), the_space(), {}, FakeTrainings(third_is_best))
    assert len(plan_of(tmp_path)["spent"]) == 3


def test_mistakes_are_told(tmp_path: Path) -> None:
    fake = FakeTrainings(third_is_best)
    comparison.run(options(tmp_path), the_space(), {}, fake)
    with pytest.raises(UserError, match=r"another sweep \(core_seconds: 30.0 -> 31.0\)"):
        comparison.run(options(tmp_path, core_seconds=31.0), the_space(), {}, fake)
    (tmp_path / "c" / "opened.json").write_text("{}")
    with pytest.raises(UserError, match="nothing is trained any more"):
        comparison.run(options(tmp_path), the_space(), {}, fake)
    for changes, line in (
        ({"kinds": "npdraw,vea"}, "did you mean vae"),
        ({"kinds": "vae"}, "two kinds or more"),
        ({"scheduler": "asha"}, "--scheduler is no flag of a comparison"),
    ):
        with pytest.raises(UserError, match=line):
            comparison.run(options(tmp_path, **changes), the_space(), {}, fake)
    for flags, line in (
        ({"eval": {"split": "test"}}, "never opens the test split"),
        ({"vae": {"images": 5}}, "--vae.images is decided by the comparison"),
    ):
        with pytest.raises(UserError, match=line):
            comparison.run(options(tmp_path), the_space(), flags, fake)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_is_not_there_is_told_before_anything_is_written(tmp_path: Path, workers: int) -> None:
    flags = {"data": {"path": str(tmp_path / "nowhere")}, "scale": {"num_workers": workers}}
    with pytest.raises(UserError, match="nowhere is no folder"):
        comparison.run(options(tmp_path), the_space(), flags)
    assert not (tmp_path / "c").exists()


def test_a_training_has_one_thread_and_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = the_space()
    job = draw_trials(space, base_config(space, None, {}, {}), ["vae"], 1)[0].with_images(
        640, "trials", "vae-0"
    )
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
    assert started["command"][started["command"].index("--stages") + 1] == "parse,vae"
    assert "--pdeathsig" in started["command"]  # a killed sweep leaves no training behind
    assert job.experiment.scale.here
