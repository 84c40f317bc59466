"""The rows of a run, each once even after a restart, and the same rows as TensorBoard's events.

Shapes: C, H, W of pictures.
"""

import atexit
import json
import tempfile
import threading
import uuid
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from npdraw_dist.system import storage
from npdraw_dist.system.storage import list_files, open_filesystem, read_bytes, write_bytes
from npdraw_dist.training import metrics_log
from npdraw_dist.training.metrics_log import Events, Journal, read_metrics
from tests.helpers.counting import Counting

LOCAL = fs.LocalFileSystem()
PICTURE = torch.rand(1, 8, 12)


def row(step: int, name: str = "valid/nll", value: float | None = None) -> dict[str, float]:
    return {"step": step, "images_seen": 10 * step, name: step / 10 if value is None else value}


@pytest.fixture(params=["local", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[fs.FileSystem, str]]:
    """A folder on this machine, and one in a store that cannot append."""
    if request.param == "local":
        yield LOCAL, str(tmp_path)
    else:
        yield open_filesystem(f"memory://{uuid.uuid4().hex}")


def test_rows_come_back_while_a_run_is_written_and_after(place: tuple[fs.FileSystem, str]) -> None:
    filesystem, folder = place
    assert read_metrics(filesystem, folder) == []
    rows = [row(step) for step in range(1, 12)]
    for count, item in enumerate(rows, start=1):
        Journal(filesystem, folder).add(item)  # a new one each time, as after a restart
        assert read_metrics(filesystem, folder) == rows[:count]
    assert [path for path, _ in list_files(filesystem, folder)] == [f"{folder}/metrics.jsonl"]


@pytest.mark.parametrize(("steps", "kept"), [([2, 4, 4, 6, 6], [2, 4, 6]), ([4, 6, 2, 4], [2, 4])])
def test_a_repeated_row_replaces_those_from_its_step_on(
    steps: list[int], kept: list[int], place: tuple[fs.FileSystem, str]
) -> None:
    filesystem, folder = place
    rows = [row(step, value=number) for number, step in enumerate(steps)]
    journal = Journal(filesystem, folder)
    for each in rows:
        journal.add(each)
    lines = read_bytes(filesystem, f"{folder}/metrics.jsonl").decode().splitlines()
    found = [json.loads(line) for line in lines]
    assert read_metrics(filesystem, folder) == found
    assert [item["step"] for item in found] == kept
    assert all(item == rows[max(n for n, step in enumerate(steps) if step == item["step"])] for item in found)


def test_each_of_many_rows_costs_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Counting()
    filesystem = fs.PyFileSystem(handler)
    monkeypatch.setitem(storage.OBJECT_STORES, filesystem.type_name, "pretended")
    journal = Journal(filesystem, str(tmp_path))
    journal.add(row(1))
    before = handler.counts["requests"]
    for step in range(2, 12):
        journal.add(row(step))
    assert handler.counts["requests"] == before + 10


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def scalars(folder: Path) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in read(folder).Scalars("valid/nll")]


def fill(filesystem: fs.FileSystem, folder: str) -> None:
    settings: dict[str, Any] = {"prior.width": 16, "vae.beta": 0.5, "data.source": "digits"}
    Events(filesystem, folder).begin(settings, "valid/nll", {"bank": PICTURE})
    events = Events(filesystem, folder)
    for step in (2, 4):
        events.add(row(step - 1, "recent/loss"))
        events.add(row(step))
        events.add_pictures(row(step), {"samples": PICTURE * step / 4})


def check(folder: Path) -> None:
    found = read(folder)
    assert [event.step for event in found.Scalars("valid/nll")] == [20, 40]
    assert [event.step for event in found.Scalars("recent/loss")] == [10, 30]
    assert [event.step for event in found.Images("samples")] == [20, 40]
    (bank,) = found.Images("bank")
    assert (bank.step, bank.width, bank.height) == (0, 12, 8)
    (text,) = found.Tensors("settings/text_summary")
    assert b"prior.width: 16" in text.tensor_proto.string_val[0]
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(
        found.PluginTagToContent("hparams")
    )


@pytest.mark.parametrize("refusals", [[None], [None, OSError("busy")]])
def test_tensorboard_reads_the_events_of_a_store_of_objects(
    refusals: list[OSError | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large events are in several objects. What the store refused is written with the next event."""
    answers = cycle(refusals)

    def write(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
        if error := next(answers):
            raise error
        write_bytes(filesystem, path, content)

    monkeypatch.setattr(metrics_log, "LARGEST", 1)
    monkeypatch.setattr(metrics_log, "write_bytes", write)
    filesystem, folder = open_filesystem(f"memory://{uuid.uuid4().hex}")
    fill(filesystem, folder)
    paths = [path for path, _ in list_files(filesystem, folder)]
    assert len(paths) > 2 or len(refusals) > 1
    for path in paths:
        (tmp_path / path.rpartition("/")[2]).write_bytes(read_bytes(filesystem, path))
    check(tmp_path)


def test_a_restart_shows_no_step_twice(tmp_path: Path) -> None:
    """Training resumes after the checkpoint of step 4, or begins anew."""
    fill(LOCAL, str(tmp_path))
    killed = Events(LOCAL, str(tmp_path), images_seen=40)
    for step in (6, 8):
        killed.add(row(step))
    again = Events(LOCAL, str(tmp_path), images_seen=40)
    for step in (6, 8, 10):
        again.add(row(step, value=0.5))
    assert scalars(tmp_path) == [(20, 0.2), (40, 0.4), (60, 0.5), (80, 0.5), (100, 0.5)]
    Events(LOCAL, str(tmp_path)).add(row(2, value=0.7))
    assert scalars(tmp_path) == [(20, 0.7)]
    assert [event.step for event in read(tmp_path).Images("bank")] == [0]


def test_tensorboard_reads_events_that_need_no_thread_and_no_file_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer with a file of its own would fail again on a full disk at the end of the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    registered: list[object] = []
    before = threading.active_count()
    monkeypatch.setattr(atexit, "register", registered.append)
    fill(LOCAL, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    assert (threading.active_count(), registered) == (before, [])
    check(tmp_path)


def test_what_a_failing_storage_did_not_take_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events(LOCAL, str(tmp_path))
    events.add(row(2))
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", Mock(side_effect=OSError("no space left on device")))
        events.add(row(4))
    events.add(row(6))
    assert scalars(tmp_path) == [(20, 0.2), (40, 0.4), (60, 0.6)]
