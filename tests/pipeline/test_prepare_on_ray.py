"""On Ray, prepared shards are those of one process."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data import ingest, listing
from tests.helpers.in_process import map_in_process
from tests.helpers.prepared import prepare

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_prepare_in_tasks_writes_what_one_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(shard_rows=300, fraction=0.4)
    in_tasks = prepare(data, 0, str(tmp_path / "tasks"), "webdataset")
    monkeypatch.setattr(ingest, "map_items", map_in_process)
    assert prepare(data, 0, str(tmp_path / "process"), "webdataset") == in_tasks
    for item in in_tasks["files"]:
        tar = (tmp_path / "tasks" / item["file"]).read_bytes()
        assert tar == (tmp_path / "process" / item["file"]).read_bytes()


def test_many_folders_are_listed_in_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same sizes and times as by the driver."""
    for number in range(6):
        folder = tmp_path / str(number) / "deep"
        folder.mkdir(parents=True)
        (folder / "a").write_text("a" * number)
    (tmp_path / "top").write_text("top")
    expected = listing.list_tree(fs.LocalFileSystem(), str(tmp_path))
    assert expected["path"].to_pylist() == [*(f"{number}/deep/a" for number in range(6)), "top"]
    monkeypatch.setattr(listing, "MANY", 6)
    monkeypatch.setattr(listing, "LISTED", 4)
    listed: list[int] = []
    in_tasks = listing.map_items

    def map_items(items: Sequence[list[str]], work: Callable[[list[str]], Any]) -> Iterator[Any]:
        listed.append(len(items))
        return in_tasks(items, work)

    monkeypatch.setattr(listing, "map_items", map_items)
    assert listing.list_tree(fs.LocalFileSystem(), str(tmp_path)) == expected
    assert listed == [2]
