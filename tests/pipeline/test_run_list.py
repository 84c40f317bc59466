"""`npdraw runs` on folders of real runs, among folders of other things, also in remote storage."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

import npdraw_dist.runs as command
from npdraw_dist import train
from npdraw_dist.pipeline.run_list import HEAD, rows_of
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.lease import Lease
from npdraw_dist.system.process_table import World, process_of
from npdraw_dist.system.storage import copy, open_filesystem
from tests.helpers.runs import IN_PROCESS, TINY
from tests.helpers.s3 import s3_server

Row = dict[str, str]


def listed(storage: str | Path) -> dict[str, Row]:
    """Name -> the row of a run, by the titles of the columns."""
    return {row[0]: dict(zip(HEAD, row, strict=True)) for row in rows_of(str(storage))}


def take_and_die(store: Store) -> None:
    """Leaves the lease of a process that was killed."""
    with subprocess.Popen(["sleep", "60"]) as process:
        Lease(store.filesystem, store.root, "run", world=World(process_of(process.pid))).take()
        process.kill()


@pytest.fixture
def storage(run_in_process: Path, tmp_path: Path) -> Path:
    """A finished run, one whose stages data and bank were run, and things that are no runs."""
    storage = tmp_path / "runs"
    shutil.copytree(run_in_process, storage / "whole")
    few = ("--data.fraction", "0.05", "--stages", "data,bank")
    train.main(["--storage", str(storage), "--name", "begun", *TINY, *IN_PROCESS, *few])
    (storage / "notes").mkdir()
    (storage / "notes" / "config.yaml").write_text("of another program")
    (storage / "empty").mkdir()
    (storage / "file").write_text("")
    os.makedirs(os.fsencode(storage) + b"/\xff")
    return storage


def test_runs_have_a_state_their_stages_a_time_and_numbers(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(storage / "whole" / "log.txt", (0, 2**31))
    capsys.readouterr()
    command.main(["--storage", str(storage)])
    head, whole, begun = capsys.readouterr().out.splitlines()
    assert head.split() == list(HEAD)
    assert whole.split()[:3] == ["whole", "finished", "all"]  # written last, in 2038
    assert begun.split()[:4] == ["begun", "stopped", "data,", "bank"]
    rows, metrics = listed(storage), Store(fs.LocalFileSystem(), str(storage / "whole")).metrics()
    assert f"NLL {metrics['test/nll_iwae']:.2f} ± " in rows["whole"]["numbers"]
    assert rows["whole"]["numbers"].endswith("test images)")
    seconds = sum(value for key, value in metrics.items() if key.endswith("/seconds"))
    assert abs(float(rows["whole"]["seconds"]) - seconds) <= 1
    assert rows["whole"]["written"].startswith("2038-01-1")
    assert rows["begun"]["numbers"] == ""


def test_a_run_is_running_while_its_lease_lives_and_interrupted_if_its_process_was_killed(
    storage: Path,
) -> None:
    store = Store(fs.LocalFileSystem(), str(storage / "begun"))
    with store.lease():
        assert listed(storage)["begun"]["state"] == "running"
    assert listed(storage)["begun"]["state"] == "stopped"
    take_and_die(store)
    assert listed(storage)["begun"]["state"] == "interrupted"


def test_damaged_runs_and_sweeps_are_listed(storage: Path) -> None:
    for name, file, text in (
        ("config", "config.yaml", "bank: ["),
        ("older", "config.yaml", "colour: red"),
        ("manifest", "bank/manifest.json", "[1"),
        ("list", "metrics.json", "[1]"),
        ("results", "model/config.json", '{"results": {"nll_iwae": "x"}}'),
        ("bytes", "config.yaml", "\udcff"),
    ):
        shutil.copytree(storage / "whole", storage / name)
        (storage / name / file).write_bytes(text.encode(errors="surrogateescape"))
    for name, files in (("found", ("sweep.json", "best.yaml")), ("going", ("comparison.json",))):
        (storage / name).mkdir()
        for file in files:
            (storage / name / file).write_text("{}")
    rows = listed(storage)
    damaged = {"config", "older", "manifest", "list", "results", "bytes"}
    assert {name for name, row in rows.items() if row["stages"] == "unreadable"} == damaged
    assert "is not YAML" in rows["config"]["numbers"]
    assert all(rows[name]["numbers"] and "\n" not in rows[name]["numbers"] for name in damaged)
    assert {name: rows[name]["state"] for name in ("found", "going")} == {
        "found": "finished",
        "going": "stopped",
    }
    assert rows["found"]["stages"] == "a sweep"
    assert set(rows) == damaged | {"whole", "begun", "found", "going"}


def test_runs_in_remote_storage_are_listed(storage: Path) -> None:
    here = listed(storage)
    with s3_server() as bucket:
        for uri in (f"{bucket}/runs", "memory://listed/runs"):
            filesystem, root = open_filesystem(uri)
            for name in here:
                copy(fs.LocalFileSystem(), str(storage / name), filesystem, f"{root}/{name}")
            rows = listed(uri)
            for row in (*rows.values(), *here.values()):
                row.pop("written", None)
            assert rows == here


def test_a_storage_without_runs_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    for storage in (tmp_path, tmp_path / "nowhere"):
        command.main(["--storage", str(storage)])
        assert capsys.readouterr().out.startswith(f"no run in {storage}; ")
    assert list(tmp_path.iterdir()) == [tmp_path / "notes"]


def test_the_list_starts_no_ray_and_prints_to_a_pipe(storage: Path) -> None:
    code = (
        "import sys\nfrom npdraw_dist.runs import main\n"
        f"main(['--storage', {str(storage)!r}])\nassert 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
