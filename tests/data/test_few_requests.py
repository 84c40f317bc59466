"""What a store is asked for: each request takes a while, so there are few of them, and in parallel."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.storage import copy, list_files, open_filesystem, read_bytes, write_bytes
from npdraw_dist.data import tasks
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.prepare import prepare
from npdraw_dist.data.readers import tables
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from tests.helpers.flaky_proxy import Faults, flaky_proxy
from tests.helpers.rows import open_parses
from tests.helpers.s3_server import s3_server

SIDE = 6


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture
def seen(bucket: str) -> Iterator[Counter[str]]:
    """Requests by their method."""
    with flaky_proxy() as faults:
        yield _cleared(faults)


def _cleared(faults: Faults) -> Counter[str]:
    faults.seen.clear()
    return faults.seen


def rows(count: int, start: int = 0) -> Rows:
    images = np.random.default_rng(start).integers(0, 256, (count, 1, SIDE, SIDE), np.uint8)
    return Rows([f"i{start + i:05d}" for i in range(count)], images, np.arange(count) % 10)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,300 images in one Parquet file, prepared in this process as three shards of up to 1,200 images."""
    monkeypatch.setattr(tasks, "ray_runs", lambda: False)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "all.parquet").write_bytes(to_parquet(rows(1300)))
    data = DataConfig(source="parquet", path=str(tmp_path / "raw"), image_size=SIDE, channels=1)
    prepare(data, 0, str(tmp_path / "out"), "parquet")
    return tmp_path / "out"


def read(folder: Path, **changes: Any) -> dict[str, list[Rows]]:
    data = DataConfig(source="parquet", path=str(folder), image_size=SIDE, channels=1, **changes)
    source = open_source(data, 0)
    return {split: [shard.read() for shard in source.shards(split)] for split in SPLITS}


def assert_same(found: dict[str, list[Rows]], expected: dict[str, list[Rows]]) -> None:
    for split in SPLITS:
        assert len(found[split]) == len(expected[split])
        for one, other in zip(found[split], expected[split], strict=True):
            assert one.ids == other.ids
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.known_labels(), other.known_labels())


def test_a_file_is_asked_for_its_size_once(bucket: str, seen: Counter[str]) -> None:
    filesystem, root = open_filesystem(f"{bucket}/few/once")
    write_bytes(filesystem, f"{root}/a.parquet", to_parquet(rows(50)))
    seen.clear()
    with pq.ParquetFile(f"{root}/a.parquet", filesystem=filesystem, pre_buffer=True) as file:
        file.read_row_groups([0], columns=["id", "image", "label"])
    assert seen["HEAD"] == 1
    assert seen["GET"] <= 2  # the footer, and the columns


def test_a_full_folder_is_listed_by_one_request(bucket: str, seen: Counter[str]) -> None:
    filesystem, root = open_filesystem(f"{bucket}/few/listed")
    write_bytes(filesystem, f"{root}/a/b", b"1")
    seen.clear()
    assert [path for path, _ in list_files(filesystem, root)] == [f"{root}/a/b"]
    assert seen == {"GET": 1}


def test_a_copy_asks_for_no_folders(bucket: str, seen: Counter[str], tmp_path: Path) -> None:
    filesystem, root = open_filesystem(f"{bucket}/few/copied")
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"1")
    (tmp_path / "from" / "deep" / "b").write_bytes(b"22")
    seen.clear()
    copy(open_filesystem(str(tmp_path))[0], str(tmp_path / "from"), filesystem, f"{root}/to")
    assert seen == {"PUT": 2}
    assert list_files(filesystem, root) == [(f"{root}/to/a", 1), (f"{root}/to/deep/b", 2)]
    copy(open_filesystem(str(tmp_path))[0], str(tmp_path / "from" / "a"), filesystem, f"{root}/one")
    assert read_bytes(filesystem, f"{root}/one") == b"1"


def test_the_manifest_of_prepare_replaces_the_footers(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_footer", None)  # a call fails
    found = read(prepared, shard_rows=1024)
    assert len(found["train"][0]) == 1024  # at a row group's end
    assert sum(len(shard) for split in SPLITS for shard in found[split]) == 1300
    monkeypatch.undo()
    manifest = json.loads((prepared / "manifest.json").read_text())
    del manifest["row_group"]  # as for tars: the footers are read
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    assert_same(read(prepared, shard_rows=1024), found)


def test_a_file_that_changed_since_is_asked(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = next((prepared / "train").glob("*.parquet"))
    changed.write_bytes(to_parquet(rows(7, start=5000)))
    asked: list[str] = []
    footer = tables._footer

    def counted(filesystem: fs.FileSystem, path: str) -> Any:
        asked.append(path)
        return footer(filesystem, path)

    monkeypatch.setattr(tables, "_footer", counted)
    found = read(prepared)
    assert asked == [str(changed)]
    assert sum(len(shard) for shard in found["train"]) == 7


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_tensors_are_read_at_once_as_one_by_one(
    prepared: Path, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(prepared, fraction=fraction)
    monkeypatch.setattr(tables.TableReader, "_as_written", lambda *given: None)
    assert_same(found, read(prepared, fraction=fraction))


def test_small_files_of_prepare_are_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ray_runs", lambda: False)
    for split, counts in {"train": (3, 4, 5, 20, 2), "valid": (2, 1), "test": (4,)}.items():
        (tmp_path / "raw" / split).mkdir(parents=True)
        for number, count in enumerate(counts):
            table = to_parquet(rows(count, 1000 * SPLITS.index(split) + 100 * number))
            (tmp_path / "raw" / split / f"{number}.parquet").write_bytes(table)
    data = DataConfig(source="parquet", path=str(tmp_path / "raw"), image_size=SIDE, channels=1)
    prepare(data, 0, str(tmp_path / "out"), "parquet")
    found = read(tmp_path / "out", shard_rows=10)
    assert [len(shard) for shard in found["train"]] == [7, 5, 20, 2]
    assert [len(shard) for shard in found["valid"]] == [3]
    assert found["train"][0].ids == ["i00000", "i00001", "i00002", *(f"i{n:05d}" for n in range(100, 104))]
    assert_same(
        {split: [Rows.cat(shards)] for split, shards in found.items()},
        {split: [Rows.cat(shards)] for split, shards in read(tmp_path / "raw", shard_rows=10).items()},
    )


def _table(ids: list[str | None], labels: list[int | None], bad: int | None = None) -> bytes:
    images = [pa.scalar([7] * SIDE * SIDE).as_py() for _ in ids]
    values = pa.array(images, pa.list_(pa.uint8(), SIDE * SIDE))
    if bad is not None:
        mask = np.arange(len(ids)) == bad
        values = pa.FixedSizeListArray.from_arrays(values.flatten(), SIDE * SIDE, mask=pa.array(mask))
    kind = pa.fixed_shape_tensor(pa.uint8(), (1, SIDE, SIDE))
    table = pa.table({"id": ids, "image": pa.ExtensionArray.from_storage(kind, values), "label": labels})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_rows_that_need_a_look_get_one(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    table = _table(["a", "b", "a", None, "d"], [1, None, 2, 3, 4], bad=4)
    (tmp_path / "train" / "x.parquet").write_bytes(table)
    (shard,) = read(tmp_path, valid_fraction=0, test_fraction=0)["train"]
    assert shard.ids == ["a", "b", "train/x.parquet-000003"]
    assert [(reject.id, reject.reason) for reject in shard.rejects] == [
        ("a", "duplicate id"),
        ("d", "no image"),
    ]
    assert shard.labels is not None
    assert shard.labels.tolist() == [1, -1, 3]


def test_rows_of_many_files_come_in_the_order_that_is_asked(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.parquet").write_bytes(to_parquet(rows(1100, 1100 * number)))
    parses = open_parses(open_filesystem(str(tmp_path))[0], str(tmp_path))
    whole = np.concatenate([rows(1100, 1100 * number).images for number in range(5)])
    asked = np.array([5499, 0, 1100, 1099, 2300, 0, 1023, 1024])
    np.testing.assert_array_equal(parses.at(asked).images.numpy(), whole[asked])
