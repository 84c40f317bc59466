"""A run of version 0.1.0 passes on the weights that it did then, unless the command asks for others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from npdraw_dist import train
from npdraw_dist.config.load import build, dump, preset_names, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.section import Section
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.fingerprints import of_stage
from npdraw_dist.pipeline.old_defaults import keep_old_defaults
from npdraw_dist.pipeline.store import Store


def begun(tmp_path: Path, **settings: Any) -> Store:
    """A run of preset digits that began with `settings` of the section train."""
    store = Store.open(str(tmp_path), "run")
    store.claim(resolve("digits", None, {"train": settings}))
    return store


def test_the_best_weights_are_passed_on_by_default() -> None:
    assert Experiment().train.select == "best"
    selected = {name: resolve(name, None, {}).train.select for name in preset_names()}
    assert selected.pop("authors") == "last"  # theirs
    assert set(selected.values()) == {"best"}


def test_a_run_that_began_with_the_last_weights_keeps_them(tmp_path: Path) -> None:
    store = begun(tmp_path, select="last")
    experiment, lines = keep_old_defaults(store, resolve("digits", None, {}))
    assert experiment.train.select == "last"
    assert lines == ["train.select: last, as the run began (best by default since 0.2.0)"]
    assert not store.claim(experiment)  # not refused
    assert of_stage(experiment, "vae") == of_stage(store.config(), "vae")


@pytest.mark.parametrize("source", ["flag", "file"])
def test_a_value_that_was_given_is_another_config(source: str, tmp_path: Path) -> None:
    store = begun(tmp_path, select="last")
    given = {"train": {"select": "best"}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(given))
    file, flags = (tmp_path / "my.yaml", {}) if source == "file" else (None, given)
    experiment, lines = keep_old_defaults(store, resolve("digits", file, flags))
    assert (experiment.train.select, lines) == ("best", [])
    with pytest.raises(UserError, match=r"another config \(train\.select: last -> best\)"):
        store.claim(experiment)


def test_a_run_whose_config_lacks_a_later_setting_has_what_was_before_it(tmp_path: Path) -> None:
    """A run of version 0.2.0, whose config does not know of hard draws, goes on without them."""
    store = begun(tmp_path)
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del values["vae"]["hard_share"], values["vae"]["draws"], values["prior"]["table"]
    del values["train"]["shuffle_mb"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    assert keep_old_defaults(store, resolve("digits", None, {}))[0].train.shuffle_mb == 0
    assert (store.config().vae.hard_share, store.config().prior.table) == (0, "joint")
    as_begun = {"vae": {"hard_share": 0}, "train": {"shuffle_mb": 0}}
    assert not store.claim(resolve("digits", None, as_begun))
    with pytest.raises(UserError, match=r"another config \(vae\.hard_share: .* -> 0\.3\)"):
        store.claim(resolve("digits", None, {**as_begun, "vae": {"hard_share": 0.3}}))


def test_old_fingerprints_know_no_later_setting() -> None:
    old = resolve("digits", None, {"vae": {"hard_share": 0, "draws": 2}})
    new = resolve("digits", None, {"vae": {"hard_share": 0.3}})
    assert not {"hard_share", "draws"} & old.deciding()["vae"].keys()
    assert new.deciding()["vae"]["hard_share"] == 0.3
    assert of_stage(old, "vae") != of_stage(new, "vae")
    assert of_stage(old, "prior") == of_stage(new, "prior")
    assert "table" not in old.deciding()["prior"]
    other = resolve("digits", None, {"prior": {"table": "factorised"}})
    assert other.deciding()["prior"]["table"] == "factorised"
    assert of_stage(other, "parse") == of_stage(old, "parse")
    assert of_stage(other, "prior") != of_stage(old, "prior")


def test_the_default_of_a_later_setting_leaves_fingerprints_as_they_were() -> None:
    # Whose defaults are others than before they were there.
    experiment = build({"vae": {"hard_share": 0}, "train": {"patience": 0, "shuffle_mb": 0}})
    deciding = experiment.deciding()
    later = {
        name: set(type(section).added_later())
        for name in Experiment.model_fields
        if isinstance(section := getattr(experiment, name), Section)
    }
    assert {"padding", "background"} <= later["grid"]
    assert {"posterior", "decoder", "surrogate", "tau_decay"} <= later["vae"]
    assert {"where", "batch_size"} <= later["prior"]
    assert {"rate_decay", "adam_beta2", "rate_batch"} <= later["train"]
    for name, settings in later.items():
        assert not settings & deciding.get(name, {}).keys(), name


def test_new_runs_and_runs_of_this_version_are_as_the_command_says(tmp_path: Path) -> None:
    experiment = resolve("digits", None, {})
    assert keep_old_defaults(Store.open(str(tmp_path), "new"), experiment) == (experiment, [])
    assert keep_old_defaults(begun(tmp_path), experiment) == (experiment, [])


def test_nothing_else_of_the_run_is_taken_over(tmp_path: Path) -> None:
    store = begun(tmp_path, select="last", warmup=0.2)
    experiment, _ = keep_old_defaults(store, resolve("digits", None, {}))
    assert experiment.train.warmup == 0.05
    with pytest.raises(UserError, match=r"another config \(train\.warmup: 0\.2 -> 0\.05\)"):
        store.claim(experiment)


def test_the_command_says_which_weights_it_passes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training goes on; the run folder keeps its config."""
    store = begun(tmp_path, select="last")
    before = dump(store.config())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("npdraw_dist.training.launch.start_ray", stop)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--storage", str(tmp_path), "--name", "run", "--scale.num_workers", "1"])
    assert "train.select: last, as the run began" in capsys.readouterr().out
    assert dump(store.config()) == before
