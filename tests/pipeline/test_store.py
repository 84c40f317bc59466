"""The run folder: its name, its config and its stages; and a second driver is refused."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from pyarrow import fs

from npdraw_dist import prepare, train
from npdraw_dist.config.cli import parse_flags
from npdraw_dist.config.load import resolve, with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.distributed.run import SNAPSHOT, remove_broken_snapshot
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.run import removed_if_refused, run_stages
from npdraw_dist.pipeline.store import CONFIG, OPENINGS, Store, fingerprint_of, finished
from npdraw_dist.system.errors import OtherFormat, UserError
from npdraw_dist.system.lease import Lease, LeaseLost
from npdraw_dist.system.made_by import FORMAT, stamp
from npdraw_dist.system.process_table import World, process_of, this_process
from tests.helpers.in_process import Stopped, stopped
from tests.helpers.runs import IN_PROCESS, TINY, Refused, tiny
from tests.helpers.s3 import s3_server
from tune_spaces import sweep


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate(sections)


def test_a_claim_writes_the_whole_config_and_only_the_same_one_resumes(store: Store, tmp_path: Path) -> None:
    assert not store.has()
    assert list(tmp_path.iterdir()) == []  # to open creates nothing
    made = experiment(prior={"depth": 3})
    assert store.claim(made)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert Experiment.model_validate(config) == made
    assert config["bank"]["size"] == made.bank.size
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.yaml", "test_split.json"]
    assert not store.claim(made)
    # How a run is carried out may change.
    assert not store.claim(with_changes(made, {"scale": {"num_workers": 2}, "data": {"cache_mb": 1}}))
    with pytest.raises(UserError, match=r"\(prior.depth: 3 -> 2; seed: 0 -> 7\)"):
        store.claim(with_changes(made, {"seed": 7, "prior": {"depth": 2}}))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == config


def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "mine" / "parses").mkdir(parents=True)
    (tmp_path / "mine" / "parses" / "notes.txt").write_text("mine")
    for main, flags in (
        (train.main, ("--model.kind", "vae", "--stages", "data", "--data.fraction", "0.02")),
        (sweep.main, ("--space", "smoke")),
        (sweep.main, ("--space", "comparison", "--preset", "digits")),
    ):
        said = refused(main, *flags, "--name", "mine", "--storage", str(tmp_path))
        assert "mine holds parses and is no run; take another --name or --storage" in said
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["parses", "notes.txt"]
    # What a start leaves that was killed before it wrote config.yaml is no other thing.
    for name in (".lease", OPENINGS, f"{CONFIG}.0a1b2c3d.part"):
        (tmp_path / "killed" / name).mkdir(parents=True)
    Store.open(str(tmp_path), "killed").require_own()


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with s3_server() if request.param == "s3" else nullcontext() as bucket:
        yield bucket or {"local": str(tmp_path), "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


def test_files_and_folders_come_back(storage: str) -> None:
    store = Store.open(storage, "run")
    assert store.is_local == ("://" not in storage)
    assert not store.has()
    store.make_folder()
    assert store.has()
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
    with store.writing("bank", "manifest.json") as path:
        path.write_text('{"k"')
    with pytest.raises(UserError, match=r"manifest\.json is unreadable"):
        store.read_json("bank", "manifest.json")
    store.remove("bank")
    assert not store.has("bank")
    assert store.has("model", "config.json")
    store.remove()
    assert not store.has()


def test_a_stage_takes_only_its_own_artifacts(store: Store) -> None:
    own = experiment()
    assert finished(store, own, "bank") is None
    made = {"fingerprint": fingerprint_of(own, "bank"), "k": 3}
    store.write_json(made, "bank", "manifest.json")
    assert finished(store, own, "bank") == made
    with pytest.raises(UserError, match="another config or input"):
        finished(store, experiment(seed=1), "bank")


def test_another_version_of_the_same_format_resumes(store: Store) -> None:
    made = {"fingerprint": fingerprint_of(experiment(), "parse")}
    store.write_manifest(made, "parses")
    assert finished(store, experiment(), "parse") == {**made, **stamp()}
    store.write_json({**made, "version": "0.0.9", "format": FORMAT}, "parses", "manifest.json")
    assert finished(store, experiment(), "parse") is not None


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1])
def test_a_run_of_another_format_is_refused_in_a_line(number: int, tmp_path: Path, refused: Refused) -> None:
    store = Store.open(str(tmp_path), "run")
    store.claim(resolve("digits", None, {}))
    store.write_json({"fingerprint": "a", "version": "9.0.0", "format": number}, "bank", "manifest.json")
    line = refused(train.main, "--storage", str(tmp_path), "--name", "run")
    assert f"npdraw_dist 9.0.0 in format {number}" in line
    with pytest.raises(OtherFormat):
        finished(store, experiment(), "bank")


@pytest.mark.parametrize("by_a_task", [False, True])
def test_a_storage_that_fails_in_any_stage_gives_one_line(
    store: Store, by_a_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder stays, although no stage has finished."""

    def fails(experiment: Experiment, store: Store) -> dict[str, Any]:
        full = OSError(28, "No space left on device")
        if not by_a_task:
            raise full
        failed = RuntimeError("a task failed")
        failed.cause = full  # type: ignore[attr-defined]  # as Ray's RayTaskError
        raise failed

    monkeypatch.setitem(pipeline.STAGES, "bank", SimpleNamespace(run=fails))
    message = r"^stage bank stopped because its storage failed \(.*No space left"
    with store.lease() as lease:
        assert store.claim(experiment())
        with pytest.raises(UserError, match=message), removed_if_refused(store, lease):
            run_stages(experiment(), store, ["bank"], lease)
    assert store.has("config.yaml")


@pytest.mark.parametrize("state", ["half", "gone", "other", "whole"])
def test_a_list_of_checkpoints_that_ray_cannot_read_is_removed(state: str, tmp_path: Path) -> None:
    names = ["checkpoint_000000006", "checkpoint_000000002"]
    for name in names:
        (tmp_path / name).mkdir()
    names += ["checkpoint_000000004"] if state == "gone" else []
    version = "1.0" if state == "other" else ray.__version__
    results = [{"checkpoint_dir_name": name} for name in names]
    text = json.dumps({"ray_version": version, "checkpoint_results": results})
    (tmp_path / SNAPSHOT).write_text(text[: len(text) // 2] if state == "half" else text)
    remove_broken_snapshot(fs.LocalFileSystem(), str(tmp_path))
    assert (tmp_path / SNAPSHOT).exists() == (state == "whole")


EXPERIMENT = resolve("digits", None, parse_flags(train.Train, "npdraw_dist.train", TINY))


def taken_by(process: subprocess.Popen[bytes], folder: Path) -> None:
    Lease(fs.LocalFileSystem(), str(folder), "run", world=World(process_of(process.pid))).take()


def names_it(error: str, process: subprocess.Popen[bytes]) -> bool:
    return f"is in use by process {process.pid} on {this_process().host}" in error


def test_a_second_training(
    tmp_path: Path, sleeping: subprocess.Popen[bytes], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_by(sleeping, tmp_path / "x")
    command = ("--storage", str(tmp_path), "--name", "x", *TINY)
    assert names_it(refused(train.main, *command), sleeping)
    assert [path.name for path in (tmp_path / "x").iterdir()] == [".lease"]

    monkeypatch.setattr("npdraw_dist.distributed.start.start_ray", stopped)
    sleeping.kill()
    sleeping.wait()
    with pytest.raises(Stopped):
        train.main(command)
    with pytest.raises(Stopped):  # and that one ended
        train.main(command)


def test_what_needs_no_lease(
    tmp_path: Path, sleeping: subprocess.Popen[bytes], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(str(tmp_path), "x").claim(EXPERIMENT)
    taken_by(sleeping, tmp_path / "x")
    command = ("--storage", str(tmp_path), "--name", "x", *TINY)
    train.main([*command, "--dry-run"])
    monkeypatch.setattr(pipeline, "unfinished", lambda *arguments: [])
    train.main(command)  # all done
    shutil.rmtree(tmp_path / "x" / ".lease")
    (tmp_path / "x" / ".lease").touch()  # no folder
    monkeypatch.undo()
    assert "cannot write to run" in refused(train.main, *command)


def test_a_second_sweep_or_prepare(
    tmp_path: Path, sleeping: subprocess.Popen[bytes], refused: Refused
) -> None:
    taken_by(sleeping, tmp_path / "x")
    sweeps = ("--space", "smoke", "--storage", str(tmp_path), "--name", "x")
    assert names_it(refused(sweep.main, *sweeps), sleeping)
    source = ("--data.source", "digits", "--data.fraction", "0.01")
    prepares = (*IN_PROCESS, *source, "--out", str(tmp_path / "x"))
    assert names_it(refused(prepare.main, *prepares), sleeping)
    sleeping.kill()
    sleeping.wait()
    prepare.main(prepares)  # a lease is no content of a set
    assert (tmp_path / "x" / "manifest.json").is_file()


def test_a_driver_that_was_followed_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path), "x")
    lease = store.lease()
    lease.take()
    assert store.claim(tiny())

    def followed(*arguments: object) -> None:
        other = Lease(store.filesystem, store.root, "run", world=World(this_process(), lambda process: False))
        other.take()
        with pytest.raises(LeaseLost):
            lease.beat()
        raise UserError("no such thing")

    monkeypatch.setitem(pipeline.STAGES, "bank", SimpleNamespace(run=followed))
    with pytest.raises(LeaseLost), removed_if_refused(store, lease):
        run_stages(tiny(), store, ["bank", "parse"], lease)
    assert store.has("config.yaml")
