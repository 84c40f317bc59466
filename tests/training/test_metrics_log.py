"""The rows of a run: read while it runs, and each once after a restart."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.core.storage import list_files, open_filesystem, read_bytes
from npdraw_dist.training.metrics_log import Journal, read_metrics

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
    assert [path for path, _ in list_files(filesystem, folder)] == [f"{folder}/metrics.jsonl"]


@pytest.mark.parametrize(
    ("steps", "kept"),
    [([2, 4], [2, 4]), ([2, 4, 2], [2]), ([2, 4, 4, 6, 6], [2, 4, 6]), ([4, 6, 2, 4], [2, 4])],
)
def test_a_repeated_row_replaces_those_from_its_step_on(
    steps: list[int], kept: list[int], place: tuple[fs.FileSystem, str]
) -> None:
    filesystem, folder = place
    rows = [row(step, number) for number, step in enumerate(steps)]
    journal = Journal(filesystem, folder)
    for each in rows:
        journal.add(each)
    lines = read_bytes(filesystem, f"{folder}/metrics.jsonl").decode().splitlines()
    found = [json.loads(line) for line in lines]
    assert read_metrics(filesystem, folder) == found
    assert [item["step"] for item in found] == kept
    assert all(item == rows[max(n for n, step in enumerate(steps) if step == item["step"])] for item in found)


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
