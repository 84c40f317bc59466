"""The run folder: who may claim it, which names it takes, what a stage finds in it."""

import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from npdraw_dist import __version__, train
from npdraw_dist.config.schema import STAGES, Experiment
from npdraw_dist.core.errors import OtherFormat, UserError
from npdraw_dist.core.made_by import FORMAT, stamp
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.run import removed_if_refused, require_format, run_stages
from npdraw_dist.pipeline.store import Store, fingerprint_of, finished
from tests.helpers.runs import Refused


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate(sections)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


def test_opening_creates_nothing(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "deep" / "runs"), "run")
    assert not store.has()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_writes_the_whole_config(store: Store, tmp_path: Path) -> None:
    made = experiment(prior={"depth": 3})
    assert store.claim(made)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert Experiment.model_validate(config) == made
    assert config["bank"]["size"] == made.bank.size
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.yaml", "test_split.json"]


def test_the_same_config_resumes(store: Store) -> None:
    store.claim(experiment(seed=1))
    assert not store.claim(experiment(seed=1))


def test_another_config_is_refused_by_its_keys(store: Store, tmp_path: Path) -> None:
    store.claim(experiment(prior={"depth": 4}, bank={"size": 50}))
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="another --name") as error:
        store.claim(experiment(seed=7, prior={"depth": 2}, bank={"size": 9}))
    text = str(error.value)
    for change in ("seed: 0 -> 7", "prior.depth: 4 -> 2", "bank.size: 50 -> 9"):
        assert change in text
    assert "vae" not in text
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": {"num_workers": 2, "use_gpu": False}},
        {"data": {"cache_mb": 1}},
    ],
)
def test_how_a_run_is_carried_out_may_change(store: Store, changed: dict[str, Any]) -> None:
    store.claim(experiment())
    assert not store.claim(experiment(**changed))


def test_a_folder_that_was_there_is_no_fresh_run(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert not store.claim(experiment())
    assert store.has("config.yaml")


@pytest.mark.parametrize("name", ["", "a/b", "/a", "..", ".", ".hidden", "../up"])
def test_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run name"):
        Store.open(str(tmp_path), name)


def test_a_file_where_the_storage_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store.open(str(tmp_path / "file"), "run")
    with pytest.raises(UserError, match="cannot write to the storage"):
        store.claim(experiment())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_scheme() -> None:
    with pytest.raises(UserError, match="cannot open nosuch://bucket"):
        Store.open("nosuch://bucket", "run")


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_files_and_folders_come_back(kind: str, tmp_path: Path) -> None:
    storage = str(tmp_path) if kind == "local" else f"memory://{uuid.uuid4().hex}"
    store = Store.open(storage, "run")
    assert store.is_local == (kind == "local")
    store.make_folder()
    with store.writing("bank", "bank.bin") as path:
        path.write_bytes(b"parts")
    with store.writing("model") as path:
        path.mkdir()
        (path / "config.json").write_text("{}")
    with store.reading("bank", "bank.bin") as path:
        assert path.read_bytes() == b"parts"
    with store.reading("model") as path:
        assert (path / "config.json").read_text() == "{}"
    store.write_json({"k": 3}, "bank", "manifest.json")
    assert store.read_json("bank", "manifest.json") == {"k": 3}
    store.remove("bank")
    assert not store.has("bank")
    assert store.has("model", "config.json")


def test_a_damaged_manifest_is_told(store: Store, tmp_path: Path) -> None:
    store.write_json({"k": 3}, "bank", "manifest.json")
    path = tmp_path / "run" / "bank" / "manifest.json"
    path.write_text(path.read_text()[:4])
    with pytest.raises(UserError, match=r"manifest\.json is unreadable"):
        store.read_json("bank", "manifest.json")


def test_a_stage_takes_only_its_own_artifacts(store: Store) -> None:
    own = experiment()
    assert finished(store, own, "bank") is None
    made = {"fingerprint": fingerprint_of(own, "bank"), "k": 3}
    store.write_json(made, "bank", "manifest.json")
    assert finished(store, own, "bank") == made
    with pytest.raises(UserError, match="another config or input"):
        finished(store, experiment(seed=1), "bank")


def test_another_version_goes_on_and_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    made = {"fingerprint": fingerprint_of(experiment(), "parse")}
    store.write_manifest(made, "parses")
    assert finished(store, experiment(), "parse") == {**made, **stamp()}
    require_format(store, STAGES)
    assert capsys.readouterr().out == ""
    store.write_json({"version": "0.0.9", "format": FORMAT}, "bank", "manifest.json")
    require_format(store, STAGES)
    assert f"run: made by 0.0.9, resumed by {__version__}\n" in capsys.readouterr().out


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1])
def test_a_run_of_another_format_is_refused_in_a_line(number: int, tmp_path: Path, refused: Refused) -> None:
    store = Store.open(str(tmp_path), "run")
    store.claim(experiment())
    store.write_json({"fingerprint": "a", "version": "9.0.0", "format": number}, "bank", "manifest.json")
    line = refused(train.main, "--storage", str(tmp_path), "--name", "run")
    assert f"was made by npdraw_dist 9.0.0 in format {number}, and {__version__} reads format" in line
    with pytest.raises(OtherFormat):
        finished(store, experiment(), "bank")


@pytest.mark.parametrize("by_a_task", [False, True])
def test_a_storage_that_fails_in_any_stage_is_told_in_a_line(
    store: Store, by_a_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the folder stays, although no stage has finished."""

    def fails(experiment: Experiment, store: Store) -> dict[str, Any]:
        full = OSError(28, "No space left on device")
        if not by_a_task:
            raise full
        failed = RuntimeError("a task failed")
        failed.cause = full  # type: ignore[attr-defined]  # as Ray's RayTaskError
        raise failed

    monkeypatch.setitem(pipeline.STAGES, "bank", SimpleNamespace(run=fails))
    message = r"^stage bank stopped because its storage failed \(.*No space left"
    with store.lease() as held:
        assert store.claim(experiment())
        with pytest.raises(UserError, match=message), removed_if_refused(store, held):
            run_stages(experiment(), store, ["bank"], held)
    assert store.has("config.yaml")
