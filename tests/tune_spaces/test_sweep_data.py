"""A sweep knows the data of all its trials: others are refused, moved ones go on in the same trials."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from npdraw_dist.core.errors import UserError
from npdraw_dist.data import shard_writer
from npdraw_dist.pipeline import bank, parse
from npdraw_dist.pipeline.inputs import read_digest, read_inputs
from npdraw_dist.pipeline.store import Store
from tests.helpers.image_files import SIDE, change_one, images
from tests.helpers.in_process import interfering, killed
from tests.helpers.spaces import plan_in
from tune_spaces.driver import claim
from tune_spaces.shared_stages import SharedStage, cached, needs_data
from tune_spaces.space import Choice, Space
from tune_spaces.sweep import Options, main
from tune_spaces.trials import Plan, write_result

OPTIONS = Options(space="smoke")


def flags_of(data: Path, **train: Any) -> dict[str, Any]:
    return {
        "data": {"source": "imagefolder", "path": str(data), "image_size": SIDE, "channels": 1},
        "grid": {"patch": 4, "stride": 4},
        "bank": {"size": 3},
        "scale": {"use_gpu": False},
        "train": train,
    }


def again(data: Path, plan: Plan, trials: int) -> None:
    """The command of the sweep of `plan`, on `data`."""
    storage, _, name = plan.run.root.rpartition("/")
    words = ["--space", "smoke", "--storage", storage, "--name", name, "--num-samples", str(trials)]
    for section, values in flags_of(data).items():
        words += [word for key, value in values.items() for word in (f"--{section}.{key}", str(value))]
    main(words)


def plan_of(data: Path, **train: Any) -> Plan:
    return plan_in(data.parent, "smoke", flags_of(data, **train))


def test_the_stages_of_all_trials_name_the_data_of_the_sweep(data: Path) -> None:
    plan = claim(plan_of(data), OPTIONS)
    trial = plan.trial({})
    for stage, run in (("bank", bank.run), ("parse", parse.run)):
        shared = SharedStage(plan.run, trial.experiment, stage)
        assert needs_data(plan.run, [trial.experiment])
        assert run(trial.experiment, shared.store)["inputs"] == read_digest(plan.run)
        assert read_digest(shared.store) == read_digest(plan.run)
        assert not (Path(shared.store.root) / "inputs.parquet").exists()
    assert not needs_data(plan.run, [trial.experiment])


def test_changed_data_are_refused_by_name(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = claim(plan_of(data), OPTIONS)
    made = plan.trial({}).experiment
    bank.run(made, SharedStage(plan.run, made, "bank").store)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", interfering(killed, 1))
        with pytest.raises(KeyboardInterrupt):
            parse.run(made, SharedStage(plan.run, made, "parse").store)
    (begun,) = cached(plan.run, "parse")
    assert begun.has("parses", ".done", "source.json")
    change_one(data)
    with pytest.raises(UserError, match=r"data of run .*/s changed: class/3\.bmp has another content; take"):
        claim(plan_of(data), OPTIONS)
    assert not begun.has("parses", ".done", "source.json")


def test_moved_data_go_on_in_the_same_trials(data: Path, tmp_path: Path) -> None:
    """Their training stays as it was, whatever the new command says."""
    before = claim(plan_of(data), OPTIONS)
    moved = tmp_path / "moved"
    shutil.copytree(data, moved, copy_function=shutil.copyfile)
    shutil.rmtree(data)
    plan = claim(plan_of(moved, precision="bfloat16"), OPTIONS)
    assert plan.base.train.precision == "auto"
    names = [trial.name for trial in plan.draw(4)]
    assert names == [trial.name for trial in before.draw(4)]
    made = plan.trial({}).experiment
    store = SharedStage(plan.run, made, "bank").store
    assert bank.run(made, store)["data"]["path"] == str(moved)
    assert made.data.path == str(moved)
    # The best config is for a run of its own: with the data where they are now.
    numbers = dict.fromkeys(("valid_nll", "test_nll", "seconds", "parameters"), 1.0)
    write_result(plan.run, plan.trial({}).result("finished", numbers=numbers))
    again(moved, plan, 1)
    best = yaml.safe_load(Path(plan.run.path("best.yaml")).read_text())
    assert best["data"]["path"] == str(moved)


def test_a_space_over_data_leaves_the_record_to_each_trial(data: Path, tmp_path: Path) -> None:
    other = images(tmp_path / "other", 30)
    space = Space({"data.path": Choice((str(data), str(other)))}, 2)
    plan = Plan(Store.open(str(tmp_path), "s"), space.base("digits", flags_of(data)), space, "valid_nll")
    plan = claim(plan, OPTIONS)
    assert read_inputs(plan.run) is None
    for point, count in (({"data.path": 0.0}, 40), ({"data.path": 1.0}, 30)):
        made = plan.trial(point).experiment
        store = SharedStage(plan.run, made, "bank").store
        bank.run(made, store)
        found = read_inputs(store)
        assert found is not None
        assert len(found.files) == count


def test_a_finished_sweep_does_not_miss_its_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = claim(plan_of(data), OPTIONS)
    write_result(plan.run, plan.trial({}).result("failed", reason="no memory"))
    shutil.rmtree(data)
    with pytest.raises(UserError, match="no trial finished; the first: no memory"):
        again(data, plan, 1)
    assert "no memory" in capsys.readouterr().out
    # A trial that has to read them is refused before anything starts.
    with pytest.raises(UserError, match="missing or has no image"):
        again(data, plan, 2)
