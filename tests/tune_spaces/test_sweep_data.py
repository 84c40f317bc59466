"""A sweep reads its data once: others are refused, moved ones go on in the same trials."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from npdraw_dist import prepare
from npdraw_dist.pipeline.data import run as run_data
from npdraw_dist.pipeline.run import STAGES
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from tests.helpers.image_files import SIDE, change_one, images
from tests.helpers.runs import IN_PROCESS
from tests.helpers.spaces import plan_in
from tune_spaces.driver import claim
from tune_spaces.shared_stages import SharedStage
from tune_spaces.space import Choice, Space
from tune_spaces.sweep import Options, main
from tune_spaces.trials import Plan, write_result

OPTIONS = Options(space="smoke")


SHARES = """
from tune_spaces.space import Choice, Space

SPACE = Space({"data.fraction": Choice((1.0, 0.5))}, 2, budgets={"digits": {"data.fraction": 1.0}})
"""


def flags_of(data: Path, **train: Any) -> dict[str, Any]:
    return {
        "data": {"source": "imagefolder", "path": str(data), "image_size": SIDE, "channels": 1},
        "grid": {"patch": 4, "stride": 4},
        "bank": {"size": 3},
        "scale": {"use_gpu": False},
        "train": train,
    }


def again(data: Path, plan: Plan, trials: int, space: str = "smoke") -> None:
    """The command of the sweep of `plan`, on `data`."""
    storage, _, name = plan.run.root.rpartition("/")
    words = ["--space", space, "--storage", storage, "--name", name, "--num-samples", str(trials)]
    for section, values in flags_of(data).items():
        words += [word for key, value in values.items() for word in (f"--{section}.{key}", str(value))]
    main(words)


def plan_of(data: Path, **train: Any) -> Plan:
    return plan_in(data.parent, "smoke", flags_of(data, **train))


def made_in(plan: Plan, *stages: str) -> Store:
    """Runs the stages of the base config in the cache of the sweep; the store of the last one."""
    experiment = plan.trial({}).experiment
    for stage in stages:
        store = SharedStage(plan.cache, experiment, stage).store
        STAGES[stage].run(experiment, store)
    return store


def test_trials_read_the_data_once(data: Path) -> None:
    plan = claim(plan_of(data), OPTIONS)
    trial = plan.trial({})
    assert plan.cache.needs_data([trial.experiment])
    store = made_in(plan, "data")
    assert not plan.cache.needs_data([trial.experiment])
    shutil.rmtree(data)
    made_in(plan, "bank", "parse")
    trial_store = plan.cache.trial_store(trial.experiment, trial.name)
    assert trial_store.path("data", "train") == store.path("data", "train")
    assert (
        len(trial_store.parses("train")) == trial_store.read_json("data", "manifest.json")["splits"]["train"]
    )


def test_changed_data_are_refused_as_long_as_a_trial_has_to_read_them(data: Path, tmp_path: Path) -> None:
    """Else some trials would read other images than those before."""
    shares = tmp_path / "shares.py"
    shares.write_text(SHARES)
    plan = claim(plan_in(tmp_path, str(shares), flags_of(data)), Options(space=str(shares)))
    made_in(plan, "data")
    change_one(data)
    with pytest.raises(UserError, match=r"the images of run .*/s differ from those that it has read; take"):
        again(data, plan, 2, str(shares))


def test_moved_data_go_on_in_the_same_trials(data: Path, tmp_path: Path) -> None:
    """Their training stays as it was, whatever the new command says."""
    before = claim(plan_of(data), OPTIONS)
    made_in(before, "data")
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    change_one(data)
    with pytest.raises(UserError, match="those that it has read"):
        claim(plan_of(images(tmp_path / "other", 30)), OPTIONS)
    plan = claim(plan_of(moved, precision="bfloat16"), OPTIONS)
    assert plan.base.train.precision == "auto"
    names = [trial.name for trial in plan.draw(4)]
    assert names == [trial.name for trial in before.draw(4)]
    made = plan.trial({}).experiment
    assert SharedStage(plan.cache, made, "data").is_built()
    assert made.data.path == plan.run.config().data.path == str(moved)
    # The best config is for a run of its own: with the data where they are now.
    numbers = dict.fromkeys(("valid_nll", "test_nll", "seconds", "parameters"), 1.0)
    write_result(plan.run, plan.trial({}).result("finished", numbers=numbers))
    again(moved, plan, 1)
    best = yaml.safe_load(Path(plan.run.path("best.yaml")).read_text())
    assert best["data"]["path"] == str(moved)


def test_prepared_data_that_were_moved_are_read_where_they_are_now(tmp_path: Path) -> None:
    whole, before, after = (tmp_path / name for name in ("whole", "before", "after"))
    prepare.main(["--data.source", "digits", "--out", str(before), *IN_PROCESS])
    prepared = {"source": "parquet", "path": str(before), "image_size": 28, "channels": 1, "fraction": 1.0}
    flags = {**flags_of(before), "data": prepared}
    plan = claim(plan_in(whole, "smoke", flags), OPTIONS)
    store = made_in(plan, "data")
    assert store.shards().root == str(before)
    before.rename(after)
    plan = claim(plan_in(whole, "smoke", {**flags, "data": {**prepared, "path": str(after)}}), OPTIONS)
    assert made_in(plan, "data").shards().root == str(after)


def test_trials_of_a_space_over_data_read_their_own(data: Path, tmp_path: Path) -> None:
    other = images(tmp_path / "other", 30)
    space = Space({"data.path": Choice((str(data), str(other)))}, 2)
    plan = Plan(Store.open(str(tmp_path), "s"), space.base("digits", flags_of(data)), space, "valid_nll")
    plan = claim(plan, OPTIONS)
    for point, count in (({"data.path": 0.0}, 40), ({"data.path": 1.0}, 30)):
        made = plan.trial(point).experiment
        splits = run_data(made, SharedStage(plan.cache, made, "data").store)["splits"]
        assert sum(splits.values()) == count


def test_a_finished_sweep_does_not_miss_its_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = claim(plan_of(data), OPTIONS)
    write_result(plan.run, plan.trial({}).result("failed", reason="no memory"))
    shutil.rmtree(data)
    with pytest.raises(UserError, match="no trial finished; the first one failed: no memory"):
        again(data, plan, 1)
    assert "no memory" in capsys.readouterr().out
    # A trial that has to read them is refused before anything starts.
    with pytest.raises(UserError, match="missing or has no image"):
        again(data, plan, 2)
