"""A new run opens its source once, lists the folder once and reads each of its files once."""

import builtins
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.data import shards
from npdraw_dist.data.readers import files
from npdraw_dist.pipeline.store import Store
from tests.helpers.image_files import SIDE
from tests.helpers.runs import IN_PROCESS, TINY


def settings(data: Path) -> list[str]:
    return [
        *("--data.source", "imagefolder", "--data.path", str(data), "--data.fraction", "1"),
        *("--data.image_size", str(SIDE), "--data.channels", "1", "--data.shard_rows", "10"),
        *("--grid.patch", "4", "--grid.stride", "4"),
    ]


@pytest.fixture
def counts(data: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of the functions that open and list, and looks at each file and folder below `data`."""
    counted = Counter[str]()

    def count(owner: Any, name: str, of_paths: bool = False) -> None:
        original = getattr(owner, name)

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if not of_paths:
                counted[name] += 1
            elif isinstance(first, str | os.PathLike) and Path(first).is_relative_to(data):
                counted[str(Path(first).relative_to(data))] += 1
            return original(first, *rest, **options)

        monkeypatch.setattr(owner, name, call)

    count(files, "list_tree")
    count(files, "stamp_of")
    count(shards, "load")  # of the function that opens a source
    for owner, name in ((io, "open"), (builtins, "open"), (os, "scandir"), (os, "listdir")):
        count(owner, name, of_paths=True)
    return counted


def test_a_new_run_reads_its_images_once(
    data: Path, counts: Counter[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "class" / "0.txt").write_text("words about it")
    names = [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()]
    counts.clear()
    train.main(["--storage", str(tmp_path), "--name", "run", *TINY, *IN_PROCESS, *settings(data)])
    once = {"load": 1, "list_tree": 1, "stamp_of": 1, ".": 1, "class": 1, **dict.fromkeys(names, 1)}
    assert counts == once
    assert len(names) == 41
    run = Store(fs.LocalFileSystem(), str(tmp_path / "run"))
    assert run.read_json("data", "manifest.json")["splits"]["train"] > 20
    assert run.has("model", "config.json")
    # A finished run opens the source to compare its stamp, and reads no file.
    counts.clear()
    capsys.readouterr()
    train.main(["--storage", str(tmp_path), "--name", "run", *TINY, *IN_PROCESS, *settings(data)])
    assert "all done" in capsys.readouterr().out
    assert counts == {"load": 1, "list_tree": 1, "stamp_of": 1, ".": 1, "class": 1}
