"""A comparison of kinds: as many trials and as much counted time for each, in pieces, without test images."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from npdraw_dist.config.load import build, with_changes
from npdraw_dist.data.shards import open_source
from npdraw_dist.pipeline import inputs, probe
from npdraw_dist.pipeline.probe import Cost
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.system.errors import UserError
from tests.helpers.fake_trainings import MS, SECONDS, FakeTrainings, compare, plan_of, third_is_best
from tests.helpers.image_files import change_one, images
from tests.helpers.spaces import load_kinds
from tune_spaces import budgets, comparison, sweep
from tune_spaces.budgets import (
    Job,
    Rate,
    base_config,
    draw_trials,
    split_shares,
    with_budget,
)
from tune_spaces.opening import read_sweep
from tune_spaces.options import Options

KINDS = ("npdraw", "vae", "vqvae")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines = list[str]()
    monkeypatch.setattr(comparison, "console", SimpleNamespace(print=lines.append))
    return lines


@pytest.mark.parametrize("name", ["comparison", "comparison_32", "ablations"])
def test_each_kind_has_the_same_number_of_trials_on_the_same_images(name: str) -> None:
    space = load_kinds(name)
    base = base_config(space, None, {}, {"data": {"fraction": 0.1}})
    trials = draw_trials(space, base, list(space.spaces), 6)
    assert Counter(job.kind for job in trials) == dict.fromkeys(space.spaces, 6)
    assert len({fingerprint_of(job.experiment, "vae") for job in trials}) == len(trials)
    assert len({(job.experiment.seed, job.experiment.data) for job in trials}) == 1
    assert {job.experiment.eval.split for job in trials} == {"valid"}
    shared = set.intersection(*(set(ranges.fields) for ranges in space.spaces.values()))
    assert {"vae.learning_rate", "vae.dropout", "train.augmented"} <= shared
    assert all(len({str(ranges.fields[key]) for ranges in space.spaces.values()}) == 1 for key in shared)
    for number in range(6):  # the same luck for each kind: what all may have is the same in a trial of each
        drawn = [job for job in trials if job.name.endswith(f"-{number}")]
        assert len({tuple(job.point[key] for key in sorted(shared)) for job in drawn}) == 1
    again = draw_trials(space, base, list(space.spaces), 6)
    assert [job.experiment for job in again] == [job.experiment for job in trials]


def test_a_variant_differs_in_what_it_leaves_out() -> None:
    space = load_kinds("ablations")
    base = base_config(space, None, {}, {})
    drawn = {job.name: job.experiment for job in draw_trials(space, base, list(space.spaces), 3)}
    assert {job.model.kind for name, job in drawn.items() if name.startswith("npdraw")} == {"npdraw"}
    lstm, whole = drawn["npdraw-lstm-1"], drawn["npdraw-1"]
    assert (lstm.prior.network, whole.prior.network) == ("lstm", "transformer")
    assert with_changes(lstm, {"prior": {"network": "transformer"}}) == whole
    unparsed = with_budget(drawn["npdraw-without-parser-1"], 6400)
    assert (unparsed.vae.parse_weight, unparsed.prior.images) == (0.0, unparsed.train.batch_size)
    assert unparsed.vae.parse_weight_end == 0.0


def test_all_that_counts_images_keeps_its_share_of_the_budget() -> None:
    shares = {"images": 1000, "relaxed_images": 400}
    base = build({"vae": shares, "prior": {"images": 250}, "train": {"batch_size": 10}})
    large = with_budget(base, 8000)
    assert (large.prior.images, large.vae.relaxed_images, large.vae.plain_images) == (2000, 3200, 2000)
    assert large.vae.relaxed_share == base.vae.relaxed_share
    assert with_budget(large, 1000).prior.images == 250


def test_validation_images_are_a_part_of_the_fraction() -> None:
    shares = split_shares(0.1)
    held = shares["valid_fraction"] * 8000
    assert held == pytest.approx(160)
    assert (8000 - held) * shares["fraction"] + held == pytest.approx(800)


@pytest.mark.parametrize("own", [True, False])
def test_of_data_with_validation_images_of_their_own_the_fraction_is_exact(tmp_path: Path, own: bool) -> None:
    images(tmp_path / "train", 20)
    images(tmp_path / ("valid" if own else "other"))
    data = {"source": "imagefolder", "path": str(tmp_path), "image_size": 28, "channels": 1, "fraction": 0.1}
    options = Options(space="comparison", storage=str(tmp_path), name="c", kinds=",".join(KINDS))
    planned = comparison.Comparison(options, load_kinds("comparison"), {"data": data}, None, None)
    (fraction,) = {job.experiment.data.fraction for job in planned.trials}
    assert fraction == pytest.approx(0.1 if own else 0.08 / 0.98)


def test_the_budget_takes_the_time_in_whole_batches() -> None:
    rate = Rate.of(1.0, 640, 0.5 + 0.64)
    assert (rate.fixed_s, rate.ms) == (pytest.approx(0.5), 1.0)
    assert rate.images(30.0, build({})) == 29_500 // 128 * 128
    assert Rate.of(1.0, 640, 0.6).fixed_s == 0
    assert Rate(40.0, 1.0).images(30.0, build({})) == 20 * 128  # the least


def test_the_cost_of_an_image_is_that_of_all_training_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = Cost(prior=0.001, relaxed=0.002, hard=0.004)
    monkeypatch.setattr(budgets, "cost", lambda experiment, cores: seconds)
    space = load_kinds("comparison")
    job = draw_trials(space, base_config(space, None, {}, {}), ["npdraw"], 1)[0]
    own = {"vae": {"images": 1000, "relaxed_images": 250}, "prior": {"images": 500}}
    job = replace(job, experiment=with_changes(job.experiment, own))
    assert budgets.ms_an_image(job) == pytest.approx(0.25 * 2 + 0.75 * 4 + 0.5 * 1)

    def fails(experiment: object, cores: bool) -> Cost:
        raise UserError("not possible")

    monkeypatch.setattr(budgets, "cost", fails)
    assert budgets.ms_an_image(job) == "not possible"


@pytest.mark.parametrize("kind", ["npdraw", "flow"])
def test_the_steps_of_a_kind_are_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_S", 0.0)
    space = load_kinds("comparison")
    small = {"train": {"micro_batch": 8}, "data": {"source": "digits"}}
    (job,) = draw_trials(space, base_config(space, None, {}, small), [kind], 1)
    ms = budgets.ms_an_image(job)
    assert isinstance(ms, float)
    assert ms > 0


def test_a_dry_run_lists_a_line_a_trial(capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["--space", "comparison", "--dry-run", "--data.fraction", "0.01"])
    out, note = capsys.readouterr()
    assert "each 10 trials, 5 seeds of the best and up to 2 + 4 times as long" in note
    lines = out.splitlines()
    assert Counter(line.split()[0] for line in lines) == dict.fromkeys(load_kinds("comparison").spaces, 10)
    assert all("60 core-seconds" in line for line in lines)


def test_each_training_takes_the_same_time_and_validation_chooses(tmp_path: Path) -> None:
    plan = compare(tmp_path)
    assert len(plan["spent"]) == 9
    for name, spent in plan["spent"].items():
        batch_s = 32 * MS[name.split("-")[0]] / 1000
        assert SECONDS - batch_s - 0.1 <= spent <= SECONDS + 0.1
    assert plan["winners"] == {kind: f"{kind}-2" for kind in KINDS}
    finals = [(f["run"], f["seed"]) for f in plan["finals"] if f["kind"] == "vae"]
    assert finals == [("seeds/vae-2-seed-1", 1), ("seeds/vae-2-seed-2", 2), ("longer/vae-2-x2", 1)]
    seeds = [round(final["core_seconds"]) for final in plan["finals"] if final["role"] == "seed"]
    assert seeds == [round(SECONDS)] * 6
    longest = [f for f in plan["finals"] if f["role"] == "longest"]
    assert [f["still_improving"] for f in longest] == [False] * 3  # four times as long brought nothing
    rows = pq.read_table(tmp_path / "c" / "results.parquet").to_pylist()
    assert {row["trial"] for row in rows[:3]} == set(plan["winners"].values())
    assert (tmp_path / "c" / "best.yaml").exists()
    # A second start with other facts, or once the test split was opened, is refused.
    with pytest.raises(UserError, match=r"another sweep \(core_seconds: 30.0 -> 31.0\)"):
        compare(tmp_path, core_seconds=31.0)
    (tmp_path / "c" / "opened.json").write_text("{}")
    with pytest.raises(UserError, match="it trains no more models"):
        compare(tmp_path)


def test_a_second_start_adds_kinds_and_trains_only_these(tmp_path: Path) -> None:
    two = compare(tmp_path, kinds="npdraw,vae")
    with pytest.raises(UserError, match="core_seconds"):  # with a new kind too
        compare(tmp_path, core_seconds=31.0)
    assert plan_of(tmp_path) == two
    again = FakeTrainings()
    plan = compare(tmp_path, again)
    assert {job.kind for job in again.trained} == {"vqvae"}
    assert plan == compare(tmp_path / "at-once")
    assert {name: plan["rates"][name] for name in two["rates"]} == two["rates"]
    with pytest.raises(UserError, match="another sweep"):  # no kind is taken away
        compare(tmp_path, kinds="npdraw,vae")


def test_a_comparison_that_is_extended_has_not_finished_until_the_new_kind_has(tmp_path: Path) -> None:
    class Killed(FakeTrainings):
        def __call__(self, run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
            raise KeyboardInterrupt

    compare(tmp_path, kinds="npdraw,vae")
    assert read_sweep(str(tmp_path / "c")).plan["finals"]
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, Killed())
    with pytest.raises(UserError, match="has not finished"):
        read_sweep(str(tmp_path / "c"))
    assert compare(tmp_path)["finals"]


class Recording(FakeTrainings):
    """Records which data each training has read, as a real one does."""

    def _leave(self, store: Store, job: Job, with_scores: bool) -> None:
        super()._leave(store, job, with_scores)
        source = open_source(job.experiment.data, job.experiment.seed)
        manifest = store.read_json("data", "manifest.json")
        store.write_json({**manifest, "stamp": source.stamp}, "data", "manifest.json")


def test_a_comparison_whose_data_were_moved_goes_on_and_with_other_data_does_not(tmp_path: Path) -> None:
    images(tmp_path / "a", 20)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    of_folder = {"source": "imagefolder", "image_size": 28, "channels": 1}
    first, moved = ({"data": {**of_folder, "path": str(tmp_path / name)}} for name in "ab")
    compare(tmp_path, Recording(), first, kinds="npdraw,vae")
    options = Options(space="comparison", storage=str(tmp_path), name="c", kinds="npdraw,vae")
    planned = comparison.Comparison(options, load_kinds("comparison"), moved, None, None)
    planned.require_same_data(open_source(planned.base.data, 0))
    again = Recording()
    plan = compare(tmp_path, again, moved)
    assert {job.kind for job in again.trained} == {"vqvae"}
    for final in plan["finals"]:  # the report reads the data where they are now
        _, config = inputs.find_run(str(tmp_path / "c" / final["run"] / "model")) or ("", {})
        assert config["data"]["path"] == str(tmp_path / "b")
    last = Recording()
    assert compare(tmp_path, last, first) == plan
    assert last.trained == []
    change_one(tmp_path / "b")
    with pytest.raises(
        UserError, match=r"the images of run .*/c/\w+/[\w-]+ differ from those that it has read"
    ):
        planned.require_same_data(open_source(planned.base.data, 0))


def test_the_longest_training_is_bounded_and_a_second_start_may_go_further(tmp_path: Path) -> None:
    def falls(job: Job) -> float:
        return {"x2": 70.0, "x4": 60.0}.get(job.name.split("-")[-1], third_is_best(job))

    finals = compare(tmp_path, FakeTrainings(falls), longest=2)["finals"]
    found = [(f["run"], f["still_improving"]) for f in finals if f["role"] == "longest"]
    assert found == [(f"longer/{kind}-2-x2", True) for kind in KINDS]
    again = FakeTrainings(falls)
    finals = compare(tmp_path, again)["finals"]
    assert [job.name for job in again.trained] == [f"{kind}-2-x4" for kind in KINDS]
    assert [f["run"] for f in finals if f["role"] == "longest"] == [f"longer/{kind}-2-x4" for kind in KINDS]


@pytest.mark.parametrize(
    "folder", ["trials", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rates", "seeds"))]
)
def test_a_stopped_comparison_chooses_nothing_and_goes_on(tmp_path: Path, folder: str) -> None:
    class Interrupted(FakeTrainings):
        """Returns early, as Tune does on an interrupt."""

        def __call__(self, run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
            stopped = jobs[0].folder == folder
            super().__call__(run, jobs[:-1] if stopped else jobs, with_scores)

    with pytest.raises(UserError, match=rf"1 of \d+ trainings were stopped, such as {folder}/.*resumes"):
        compare(tmp_path, Interrupted())
    before = plan_of(tmp_path)
    assert ("winners" in before) == (folder == "seeds")
    again = FakeTrainings()
    plan = compare(tmp_path, again)
    assert len(plan["spent"]) == 9
    if folder == "trials":
        assert Counter(job.folder for job in again.trained) == {"trials": 1, "seeds": 6, "longer": 6}
        assert plan["rates"] == before["rates"]  # measured once: budgets stay as they were
        third = FakeTrainings()
        compare(tmp_path, third)
        assert third.trained == []


def test_a_trial_that_fails_counts_as_one(tmp_path: Path) -> None:
    fake = FakeTrainings(failing=["vae-2", "npdraw-0-start"], unprobed=["vqvae-1-start"])
    plan = compare(tmp_path, fake)
    assert plan["winners"]["vae"] == "vae-0"
    assert len(plan["trials"]) == 9
    assert not {"trials/npdraw-0", "trials/vqvae-1"} & {job.path for job in fake.trained}
    rows = pq.read_table(tmp_path / "c" / "results.parquet").to_pylist()
    assert [row["reason"] for row in rows if row["status"] == "failed"] == ["not finite"] * 3


def test_a_seed_that_fails_is_missing_in_the_report_and_all_of_a_kind_end_the_sweep(tmp_path: Path) -> None:
    plan = compare(tmp_path, FakeTrainings(failing=["vae-2-seed-1"]))
    seeds = Counter(final["kind"] for final in plan["finals"] if final["role"] == "seed")
    assert seeds == {"npdraw": 2, "vae": 1, "vqvae": 2}
    assert [f["seed"] for f in plan["finals"] if f["role"] == "longest" and f["kind"] == "vae"] == [2]
    with pytest.raises(UserError, match="all seeds of vae failed"):
        compare(tmp_path / "all", FakeTrainings(failing=["vae-2-seed-1", "vae-2-seed-2"]))


def test_a_longer_training_is_judged_against_one_of_the_same_cost(tmp_path: Path) -> None:
    """Where a trial took more than its time, twice the corrected budget may be less than the trial's."""

    def falls(job: Job) -> float:
        return (
            third_is_best(job) if job.folder == "trials" else 120 - 4 * math.log2(job.experiment.vae.images)
        )

    plan = compare(tmp_path, FakeTrainings(falls, later={"npdraw": 2.3}))
    assert plan["budgets"]["npdraw"] * 2 < plan["rates"]["npdraw-2"]["images"]
    found = {f["kind"]: (f["run"], f["still_improving"]) for f in plan["finals"] if f["role"] == "longest"}
    assert found == {kind: (f"longer/{kind}-2-x4", True) for kind in KINDS}


def test_why_no_trial_of_a_kind_finished_is_reported(tmp_path: Path) -> None:
    failing = [f"vae-{number}-start" for number in range(3)]
    with pytest.raises(UserError, match="no trial of vae finished; the first one failed: not finite"):
        compare(tmp_path, FakeTrainings(failing=failing))


def test_a_longer_training_that_fails_does_not_count_as_the_end_of_improvement(tmp_path: Path) -> None:
    finals = compare(tmp_path, FakeTrainings(failing=["vae-2-x2"]))["finals"]
    longest = {f["kind"]: f["failed"] for f in finals if f["role"] == "longest"}
    assert longest == {"npdraw": None, "vae": "longer/vae-2-x2", "vqvae": None}
    finals = compare(tmp_path, retry_failed=True)["finals"]
    assert all(f["failed"] is None for f in finals if f["role"] == "longest")


def test_rates_that_were_measured_badly_are_reported(tmp_path: Path, printed: list[str]) -> None:
    early = [f"vqvae-{number}" for number in range(2)]  # they ended early: their time says nothing
    compare(tmp_path, FakeTrainings(later={"npdraw": 1.2, "vae": 0.4}, ended=early))
    (line,) = [line for line in printed if "the median" in line]
    assert line.startswith("vae: ")
    assert " 0.40 of its 30 core-seconds" in line


def test_the_seeds_of_a_winner_take_the_time_whatever_its_rate_said(tmp_path: Path) -> None:
    trainings = FakeTrainings(later={"npdraw": 1.25, "vae": 1.05, "vqvae": 0.8})
    plan, spent = compare(tmp_path, trainings), dict[str, list[float]]()
    for final in plan["finals"]:
        if final["role"] == "seed":
            spent.setdefault(final["kind"], []).append(final["core_seconds"])
    assert spent["npdraw"] == pytest.approx([SECONDS] * 2, rel=0.03)
    assert spent["vqvae"] == pytest.approx([SECONDS] * 2, rel=0.03)
    assert spent["vae"] == pytest.approx([1.05 * SECONDS] * 2, rel=0.03)  # near enough: as it was
    assert plan["budgets"]["vae"] == plan["rates"]["vae-2"]["images"]
    assert plan["budgets"]["npdraw"] < 0.85 * plan["rates"]["npdraw-2"]["images"]
    assert {j.budget for j in trainings.trained if j.name == "npdraw-2-x2"} == {2 * plan["budgets"]["npdraw"]}

    # The budgets stay, also where trials took another time, as on another machine.
    before = len(trainings.trained)
    plan["budgets"]["npdraw"] = 3200
    del plan["finals"]
    for name in ("seeds", "longer"):
        shutil.rmtree(tmp_path / "c" / name)
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(plan))
    assert compare(tmp_path, trainings)["budgets"]["npdraw"] == 3200
    last = trainings.trained[before:]
    assert {j.budget for j in last if j.folder == "seeds" and j.kind == "npdraw"} == {3200}


def test_another_winner_has_its_own_budget_and_seeds(tmp_path: Path) -> None:
    first = compare(tmp_path, FakeTrainings(failing=["vae-2"]))
    assert first["winners"]["vae"] == "vae-0"
    first["budgets"]["vae"] = 3200  # of vae-0
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(first))
    plan = compare(tmp_path, retry_failed=True)
    assert plan["winners"]["vae"] == "vae-2"
    assert plan["budgets"]["vae"] == plan["rates"]["vae-2"]["images"]
    runs = [final["run"] for final in plan["finals"] if final["kind"] == "vae"]
    assert runs == ["seeds/vae-2-seed-1", "seeds/vae-2-seed-2", "longer/vae-2-x2"]
