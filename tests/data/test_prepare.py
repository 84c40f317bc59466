"""`prepare`: any source to shards that read back the same, whatever happened on the way."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npdraw_dist.config.schema import DataConfig, ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import is_lease
from npdraw_dist.data.prepare import ROW_GROUP, encode_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from tests.helpers.rows import concat

pytestmark = pytest.mark.ray
DIGITS = DataConfig(shard_rows=300, fraction=0.4)


@pytest.fixture(autouse=True)
def _ray() -> None:
    from npdraw_dist.training.launch import start_ray

    start_ray(ScaleConfig())


def prepare(*arguments: Any, **settings: Any) -> dict[str, Any]:
    from npdraw_dist.data import prepare as module

    return module.prepare(*arguments, **settings)


def read(data: DataConfig, seed: int = 0) -> dict[str, Rows]:
    source = open_source(data, seed)
    return {split: concat([s.read() for s in source.shards(split)]) for split in SPLITS}


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    """path -> (content, time of the last change); of a sidecar all but the seconds that the shard took.

    Without the lease, which each call renews.
    """
    found = sorted(path for path in root.rglob("*") if path.is_file() and not is_lease(str(path)))
    return {str(p.relative_to(root)): (content(p), p.stat().st_mtime_ns) for p in found}


def content(path: Path) -> bytes:
    if path.parent.name != ".done" or path.suffix != ".json":
        return path.read_bytes()
    facts = json.loads(path.read_bytes())
    facts.pop("seconds", None)
    return json.dumps(facts).encode()


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_reads_back_with_its_splits(tmp_path: Path, form: Any) -> None:
    manifest = prepare(DIGITS, 0, (tmp_path / "out").as_uri(), form)
    original = read(DIGITS)
    # Other fractions and another seed: a prepared set keeps the splits that it was given.
    back = DataConfig(
        source=form,
        path=str(tmp_path / "out"),
        image_size=28,
        channels=1,
        valid_fraction=0.3,
        test_fraction=0.3,
    )
    found = read(back, seed=5)
    for split in SPLITS:
        rows = found[split]
        assert rows.ids == original[split].ids
        np.testing.assert_array_equal(rows.images, original[split].images)
        np.testing.assert_array_equal(rows.labels, original[split].labels)
        assert manifest["splits"][split] == len(rows) == open_source(back, 5).count(split)
    assert manifest["count"] == sum(len(rows) for rows in original.values())
    assert manifest["shape"] == [1, 28, 28]
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    for item in manifest["files"]:
        content = (tmp_path / "out" / item["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["bytes"], item["sha256"])


def stated(name: str, content: bytes) -> Any:
    """The content of a file; of a sidecar all but the CPU seconds that its shard took."""
    if not (name.startswith(".done/") and name.endswith(".json")):
        return content
    return {key: value for key, value in json.loads(content).items() if key != "core_seconds"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_resumes_at_the_shards_that_lack(tmp_path: Path, form: Any) -> None:
    suffix = {"parquet": "parquet", "webdataset": "tar"}[form]
    first = prepare(DIGITS, 0, str(tmp_path), form)
    before = files(tmp_path)
    lost, cut, undone = f"train/train-00001.{suffix}", f"test/test-00000.{suffix}", ".done/valid-00000.json"
    (tmp_path / lost).unlink()
    (tmp_path / cut).write_bytes(before[cut][0][:100])
    (tmp_path / undone).unlink()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train" / f"train-00000.{suffix}.1234.part").write_bytes(b"half")
    assert prepare(DIGITS, 0, str(tmp_path), form) == first
    after = files(tmp_path)
    assert {name: stated(name, content) for name, (content, _) in after.items()} == {
        name: stated(name, content) for name, (content, _) in before.items()
    }
    kept = f"train/train-00000.{suffix}"
    assert after[kept] == before[kept]
    assert after[lost][1] > before[lost][1]


def test_rejects_and_repeated_ids_over_shards(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    names = [f"i.{n}/x" for n in range(40)]
    names[25], names[39] = names[3], names[3]
    (tmp_path / "in").mkdir()
    for start in (0, 20):
        rows = slice(start, start + 20)
        floats = (images[rows] / 255).astype(np.float32)
        if start:
            floats[10, 0, 0, 0] = np.nan
        table = pa.table({"id": names[rows], "image": pa.FixedShapeTensorArray.from_numpy_ndarray(floats)})
        pq.write_table(table, tmp_path / "in" / f"{start:02d}.parquet")
    settings: dict[str, Any] = {
        "source": "parquet",
        "path": str(tmp_path / "in"),
        "image_size": 8,
        "channels": 1,
    }
    with pytest.raises(UserError, match=r"3 of 40 rows .*max_bad_fraction"):
        prepare(DataConfig(**settings), 0, str(tmp_path / "out"), "webdataset")
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = prepare(DataConfig(max_bad_fraction=0.1, **settings), 0, str(tmp_path / "out"), "webdataset")
    assert (manifest["count"], manifest["rejects"]) == (37, 3)
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    found = sorted((json.loads(line)["id"], json.loads(line)["reason"]) for line in lines)
    assert found == [(names[3], "duplicate id")] * 2 + [(names[30], "NaN or infinite values")]
    back = read(DataConfig(**{**settings, "source": "webdataset", "path": str(tmp_path / "out")}))
    gathered = {
        name: image for rows in back.values() for name, image in zip(rows.ids, rows.images, strict=True)
    }
    assert set(gathered) == set(names) - {names[30]}
    for n, name in enumerate(names):
        if n not in (25, 30, 39):
            np.testing.assert_array_equal(gathered[name], images[n])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    prepare(DIGITS, 0, str(tmp_path / "a"), "parquet")
    with pytest.raises(UserError, match="another source or config"):
        prepare(DIGITS, 1, str(tmp_path / "a"), "parquet")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        prepare(DIGITS, 0, str(tmp_path / "b"), "parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        prepare(DIGITS, 0, str(tmp_path / "file" / "below"), "parquet")


@pytest.mark.slow
def test_an_unreadable_shard_loses_no_other(tmp_path: Path) -> None:
    tars = tmp_path / "in"
    prepare(DIGITS, 0, str(tars), "webdataset")
    broken = tars / "train" / "train-00001.tar"
    broken.write_bytes(b"no tar" * 1000)
    data = DataConfig(source="webdataset", path=str(tars), image_size=28, channels=1)
    with pytest.raises(UserError, match=r"train-00001\.tar is no readable tar"):
        prepare(data, 0, str(tmp_path / "out"), "parquet")
    assert (tmp_path / "out" / "valid" / "valid-00000.parquet").exists()


def test_row_groups_have_the_size_that_the_manifest_states() -> None:
    """The manifest states one number for all files, also for those that an interrupted command wrote."""
    rows = Rows([str(number) for number in range(1500)], np.zeros((1500, 1, 2, 2), np.uint8))
    metadata = pq.ParquetFile(io.BytesIO(encode_parquet(rows).content)).metadata
    assert [metadata.row_group(group).num_rows for group in range(2)] == [1024, 476]
    assert ROW_GROUP == 1024
