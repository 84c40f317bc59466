"""A second driver on a run, a sweep or a prepared set is refused in one line as long as the first lives."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.config.cli import parse_flags
from npdraw_dist.config.load import resolve
from npdraw_dist.config.schema import DataConfig, Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import Lease, LeaseLost, World, this_process
from npdraw_dist.data import prepare as preparing
from npdraw_dist.data.shards import open_source
from npdraw_dist.pipeline import run
from npdraw_dist.pipeline.store import Store
from tests.helpers.runs import TINY, Refused, tiny
from tune_spaces import sweep

LOCAL = fs.LocalFileSystem()


def experiment() -> Experiment:
    return resolve("digits", None, parse_flags(train.Train, "npdraw_dist.train", TINY))


class Reached(Exception):
    """The command went past its lease."""


@pytest.fixture
def first() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def taken_by(process: subprocess.Popen[bytes], folder: Path) -> None:
    start = psutil.Process(process.pid).create_time()
    world = World(replace(this_process(), pid=process.pid, start=start))
    Lease(LOCAL, str(folder), "run", world=world).take()


def names_it(error: str, process: subprocess.Popen[bytes]) -> bool:
    return f"is in use by process {process.pid} on {this_process().host}, at work for 0 s" in error


def test_a_second_training(
    tmp_path: Path, first: subprocess.Popen[bytes], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_by(first, tmp_path / "x")
    command = ("--storage", str(tmp_path), "--name", "x", *TINY)
    error = refused(train.main, *command)
    assert error.startswith(f"error: run {tmp_path}/x is in use by ")
    assert names_it(error, first)
    assert [path.name for path in (tmp_path / "x").iterdir()] == [".lease"]

    def reached(*arguments: object) -> None:
        raise Reached

    monkeypatch.setattr("npdraw_dist.training.launch.start_ray", reached)
    first.kill()
    first.wait()
    with pytest.raises(Reached):
        train.main(command)
    with pytest.raises(Reached):  # and that one ended
        train.main(command)


def test_what_needs_no_lease(
    tmp_path: Path,
    first: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Store.open(str(tmp_path), "x").claim(experiment())
    taken_by(first, tmp_path / "x")
    command = ("--storage", str(tmp_path), "--name", "x", *TINY)
    train.main([*command, "--dry-run"])
    monkeypatch.setattr(run, "unfinished", lambda *arguments: [])
    train.main(command)
    assert "all done" in capsys.readouterr().out


def test_a_second_sweep(tmp_path: Path, first: subprocess.Popen[bytes], refused: Refused) -> None:
    taken_by(first, tmp_path / "x")
    error = refused(sweep.main, "--space", "smoke", "--storage", str(tmp_path), "--name", "x")
    assert error.startswith(f"error: sweep {tmp_path}/x is in use by ")
    assert names_it(error, first)


def test_a_second_prepare(tmp_path: Path, first: subprocess.Popen[bytes]) -> None:
    taken_by(first, tmp_path)
    with pytest.raises(UserError) as error:
        preparing.prepare(DataConfig(), 0, str(tmp_path), "parquet")
    assert str(error.value).startswith(f"--out {tmp_path} is in use by ")
    assert names_it(str(error.value), first)


def test_a_lease_is_no_content_of_a_prepared_set(tmp_path: Path) -> None:
    source = open_source(DataConfig(), 0)
    with Lease(LOCAL, str(tmp_path), "set"):
        folder, _ = preparing._claim(str(tmp_path), source, "parquet")
    assert folder.owner() == folder.made_from
    (tmp_path / ".done" / "source.json").unlink()
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        preparing._claim(str(tmp_path), source, "parquet")


def test_a_fresh_run_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path), "x")

    def mistake(*arguments: object) -> None:
        raise UserError("no such thing")

    monkeypatch.setitem(run.STAGES, "bank", SimpleNamespace(run=mistake))
    with store.lease() as held:
        assert store.claim(tiny())
        with pytest.raises(UserError, match="no such thing"), run.removed_if_refused(store, held):
            run.run_stages(tiny(), store, ["bank"], held)
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_was_followed_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path), "x")
    held = store.lease()
    held.take()
    assert store.claim(tiny())

    def followed(*arguments: object) -> None:
        follower = Lease(LOCAL, store.root, "run", world=World(this_process(), lambda process: False))
        follower.take()
        with pytest.raises(LeaseLost):
            held.beat()
        raise UserError("no such thing")

    monkeypatch.setitem(run.STAGES, "bank", SimpleNamespace(run=followed))
    with pytest.raises(LeaseLost), run.removed_if_refused(store, held):
        run.run_stages(tiny(), store, ["bank", "parse"], held)
    assert store.has("config.yaml")


def test_a_storage_that_cannot_be_written(tmp_path: Path, refused: Refused) -> None:
    Store.open(str(tmp_path), "x").claim(experiment())
    (tmp_path / "x" / ".lease").touch()  # no folder
    error = refused(train.main, "--storage", str(tmp_path), "--name", "x", *TINY)
    assert error.startswith(f"error: cannot write to run {tmp_path}/x: ")
