"""The rows of a run: appended, read while it runs, whole after a kill, each once at the end."""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.core.storage import list_files, open_filesystem, read_bytes
from npdraw_dist.training.metrics_log import METRICS, ROWS, Journal, latest, read_metrics

LOCAL = fs.LocalFileSystem()


def row(step: int, value: float = 0.5) -> dict[str, float]:
    return {"step": step, "images_seen": 10 * step, "valid/nll": value}


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
    assert Journal(filesystem, folder).compact() == rows
    assert read_metrics(filesystem, folder) == rows
    assert [path for path, _ in list_files(filesystem, folder)] == [f"{folder}/{METRICS}"]
    Journal(filesystem, folder).add(row(12))
    assert read_metrics(filesystem, folder) == [*rows, row(12)]


def test_a_repeated_row_replaces_those_from_its_step_on(place: tuple[fs.FileSystem, str]) -> None:
    filesystem, folder = place
    journal = Journal(filesystem, folder)
    for step, value in [(2, 0.1), (4, 0.2), (6, 0.3), (4, 0.4)]:
        journal.add(row(step, value))
    assert read_metrics(filesystem, folder) == [row(2, 0.1), row(4, 0.4)]
    journal.compact()
    lines = read_bytes(filesystem, f"{folder}/{METRICS}").decode().splitlines()
    assert [json.loads(line) for line in lines] == [row(2, 0.1), row(4, 0.4)]


@pytest.mark.parametrize(
    ("steps", "kept"),
    [([], []), ([2, 4], [2, 4]), ([2, 4, 2], [2]), ([2, 4, 4, 6, 6], [2, 4, 6]), ([4, 6, 2, 4], [2, 4])],
)
def test_the_latest_rows(steps: list[int], kept: list[int]) -> None:
    rows = [row(step, number) for number, step in enumerate(steps)]
    found = latest(rows)
    assert [item["step"] for item in found] == kept
    assert all(item == rows[max(n for n, step in enumerate(steps) if step == item["step"])] for item in found)


@pytest.mark.parametrize("length", [1, 20, 9000])
def test_a_part_of_a_row_is_neither_read_nor_kept(length: int, tmp_path: Path) -> None:
    """A kill in the middle of a write, even of a long row."""
    Journal(LOCAL, str(tmp_path)).add(row(2))
    with (tmp_path / METRICS).open("a") as file:
        file.write(("{" + '"step": 4, ' * 1000)[:length])
    assert read_metrics(LOCAL, str(tmp_path)) == [row(2)]
    Journal(LOCAL, str(tmp_path)).add(row(4))
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row(2), row(4)]


def test_a_first_row_that_was_cut_is_replaced(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step"')
    assert read_metrics(LOCAL, str(tmp_path)) == []
    Journal(LOCAL, str(tmp_path)).add(row(2))
    assert read_metrics(LOCAL, str(tmp_path)) == [row(2)]


def test_a_local_file_is_appended_not_written_anew(tmp_path: Path) -> None:
    journal = Journal(LOCAL, str(tmp_path))
    journal.add(row(1))
    before = (tmp_path / METRICS).stat()
    first = (tmp_path / METRICS).read_bytes()
    os.link(tmp_path / METRICS, tmp_path / "the same file")
    journal.add(row(2))
    assert (tmp_path / METRICS).stat().st_ino == before.st_ino
    assert (tmp_path / "the same file").read_bytes().startswith(first)
    journal.compact()  # nothing to drop: not written either
    assert (tmp_path / METRICS).stat().st_ino == before.st_ino


class Counting(fs.FSSpecHandler):  # type: ignore[misc]
    """Counts requests to an object store, and the bytes that are written."""

    def __init__(self) -> None:
        import fsspec

        super().__init__(fsspec.filesystem("memory"))
        self.counts: Counter[str] = Counter()

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.counts["writes"] += 1
        return super().open_output_stream(path, metadata)

    def open_input_stream(self, path: str) -> Any:
        self.counts["reads"] += 1
        return super().open_input_stream(path)

    def get_file_info_selector(self, selector: Any) -> Any:
        self.counts["lists"] += 1
        return super().get_file_info_selector(selector)


def test_a_row_costs_one_object_however_many_there_are() -> None:
    handler = Counting()
    journal = Journal(fs.PyFileSystem(handler), f"/{uuid.uuid4().hex}")
    journal.add(row(1))
    handler.counts.clear()
    for step in range(2, 52):
        journal.add(row(step))
    assert handler.counts == {"writes": 50}


def test_a_kill_in_the_compaction_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the file and the removal of the objects."""
    filesystem, folder = open_filesystem(f"memory://{uuid.uuid4().hex}")
    journal = Journal(filesystem, folder)
    for step in (2, 4, 2, 4):
        journal.add(row(step))
    with monkeypatch.context() as patch:
        patch.setattr("npdraw_dist.training.metrics_log.list_files", list_rows_then_die())
        with pytest.raises(KeyboardInterrupt):
            journal.compact()
    assert filesystem.get_file_info(f"{folder}/{METRICS}").type == fs.FileType.File
    assert len(list_files(filesystem, f"{folder}/{ROWS}")) == 4
    assert read_metrics(filesystem, folder) == [row(2), row(4)]
    assert journal.compact() == [row(2), row(4)]
    assert list_files(filesystem, f"{folder}/{ROWS}") == []


def list_rows_then_die() -> Any:
    calls = iter([False, True])

    def listed(*arguments: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return list_files(*arguments)

    return listed
