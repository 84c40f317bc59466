"""`prepare` writes shards that read back the same, and resumes with the same data only."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from npdraw_dist import prepare as command
from npdraw_dist.config.schema import DataConfig, ScaleConfig
from npdraw_dist.data import ingest
from npdraw_dist.data.parquet import digest_of, rows_a_group
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import is_lease
from tests.helpers.image_files import SIDE, change_one
from tests.helpers.in_process import Stopped, interfering, killed
from tests.helpers.prepared import prepare
from tests.helpers.rows import by_id, read_all

DIGITS = DataConfig(shard_rows=300, fraction=0.4)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def folder_of(path: Path) -> DataConfig:
    return DataConfig(source="imagefolder", path=str(path), image_size=SIDE, channels=1, shard_rows=10)


def prepared(path: Path, source: str = "parquet", size: int = SIDE, **settings: Any) -> DataConfig:
    return DataConfig(source=source, path=str(path), image_size=size, channels=1, **settings)


def content(out: Path) -> dict[str, bytes]:
    """id -> image of all splits."""
    return {name: image.tobytes() for name, image in by_id(read_all(prepared(out))).items()}


def times(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}


def assert_equal(found: Rows, expected: Rows) -> None:
    """The same rows, in any order."""
    assert sorted(found.ids) == sorted(expected.ids)
    found, expected = (rows.take(np.argsort(rows.ids)) for rows in (found, expected))
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_range_of_workers_from_0_is_this_process_without_a_cluster(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(scale: ScaleConfig) -> None:
        raise Stopped(scale.num_workers)

    monkeypatch.setattr("npdraw_dist.distributed.start.start_ray", begun)
    monkeypatch.setattr("npdraw_dist.distributed.start.ray_runs", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    flags = ["--data.source", "digits", "--out", str(out), "--scale.num_workers", "0:2"]
    command.main(flags)
    assert (out / "manifest.json").exists()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(Stopped, match="1:2"):
        command.main(flags)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_reads_back_with_its_splits(out: Path, form: Any) -> None:
    manifest = prepare(DIGITS, 0, out.as_uri(), form)
    original = read_all(DIGITS)
    # Other fractions and another seed: a prepared set keeps the splits that it was given.
    back = prepared(out, form, 28, valid_fraction=0.3, test_fraction=0.3)
    for split, rows in read_all(back, seed=5).items():
        assert_equal(rows, original[split])
        assert manifest["splits"][split] == len(rows) == open_source(back, 5).count(split)
    assert manifest["images"] == sum(len(rows) for rows in original.values())
    assert manifest["digests"] == {split: f"{digest_of(rows):032x}" for split, rows in original.items()}
    assert manifest["shape"] == [1, 28, 28]
    assert manifest == json.loads((out / "manifest.json").read_text())
    for item in manifest["files"]:
        assert (out / item["file"]).stat().st_size == item["bytes"]
        if form == "parquet":
            metadata = pq.read_metadata(out / item["file"])
            assert metadata.num_rows == item["rows"]
            assert metadata.row_group(0).num_rows == min(rows_a_group((1, 28, 28)), item["rows"])


def test_a_set_without_validation_images_has_them_held_out_by_each_seed(out: Path) -> None:
    flags = ["--data.valid_fraction", "0", "--data.test_fraction", "0.2", "--scale.num_workers", "0"]
    command.main([*flags, "--out", str(out)])
    stated = json.loads((out / "manifest.json").read_text())["splits"]
    splits = []
    for seed in (1, 2):
        made = prepared(out, "parquet", 28, valid_fraction=0.3)
        source, found = open_source(made, seed), read_all(made, seed)
        train, valid, test = (set(found[split].ids) for split in SPLITS)
        assert len(train | valid) == len(train) + len(valid) == stated["train"]
        assert 0.2 < len(valid) / stated["train"] < 0.4
        assert source.count("train") is source.count("valid") is None  # they are not listed
        assert len(test) == source.count("test") == stated["test"]
        splits.append((valid, test))
    assert splits[0][0] != splits[1][0]
    assert splits[0][1] == splits[1][1]
    whole = open_source(prepared(out, "parquet", 28, valid_fraction=0.0), 0)
    assert [whole.count(split) for split in SPLITS] == [stated["train"], 0, stated["test"]]


def test_rejects_and_repeated_ids_over_shards(tmp_path: Path, out: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, SIDE, SIDE), dtype=np.uint8)
    names = [f"i.{n}/x" for n in range(40)]
    names[25], names[39] = names[3], names[3]
    (tmp_path / "in").mkdir()
    for start in (0, 20):
        rows = slice(start, start + 20)
        floats = (pixels[rows] / 255).astype(np.float32)
        if start:
            floats[10, 0, 0, 0] = np.nan
        table = pa.table({"id": names[rows], "image": pa.FixedShapeTensorArray.from_numpy_ndarray(floats)})
        pq.write_table(table, tmp_path / "in" / f"{start:02d}.parquet")
    with pytest.raises(UserError, match=r"3 of 40 rows .*max_bad_fraction"):
        prepare(prepared(tmp_path / "in"), 0, str(out), "webdataset")
    assert not (out / "manifest.json").exists()
    manifest = prepare(prepared(tmp_path / "in", max_bad_fraction=0.1), 0, str(out), "webdataset")
    assert (manifest["images"], manifest["rejected"]) == (37, 3)
    lines = (out / "rejects.jsonl").read_text().splitlines()
    found = sorted((json.loads(line)["id"], json.loads(line)["reason"]) for line in lines)
    assert found == [(names[3], "duplicate id")] * 2 + [(names[30], "NaN or infinite values")]
    back = by_id(read_all(prepared(out, "webdataset")))
    assert set(back) == set(names) - {names[30]}
    for n, name in enumerate(names):
        if n not in (25, 30, 39):
            np.testing.assert_array_equal(back[name], pixels[n])


def test_a_folder_of_something_else_is_refused(data: Path, out: Path, tmp_path: Path) -> None:
    prepare(folder_of(data), 0, str(out), "parquet")
    others: list[Any] = [(folder_of(data), 1, "parquet"), (folder_of(data), 0, "webdataset")]
    for settings, seed, form in [*others, (DIGITS, 0, "parquet")]:
        with pytest.raises(UserError, match="another source or config"):
            prepare(settings, seed, str(out), form)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        prepare(DIGITS, 0, str(tmp_path / "mine"), "parquet")
    with pytest.raises(UserError, match="--out"):
        prepare(DIGITS, 0, str(tmp_path / "mine" / "mine.txt" / "below"), "parquet")


def contents(out: Path) -> dict[str, bytes]:
    """All files but sidecars, which state seconds, and the lease."""
    paths = [path for path in out.rglob("*") if path.is_file() and not is_lease(str(path))]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths if p.parent.name != ".done"}


def test_resumes_at_the_shards_that_lack(data: Path, out: Path) -> None:
    prepare(folder_of(data), 0, str(out), "parquet")
    before = contents(out)
    kept, lost, cut = (out / "train" / f"train-0000{number}.parquet" for number in range(3))
    at = kept.stat().st_mtime_ns
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    next((out / ".done").glob("valid-*.json")).unlink()
    (out / "manifest.json").unlink()
    kept.with_name(f"{kept.name}.1234.part").write_bytes(b"half")
    prepare(folder_of(data), 0, str(out), "parquet")
    assert contents(out) == before
    assert lost.stat().st_mtime_ns > kept.stat().st_mtime_ns == at


def test_an_unreadable_shard_loses_no_other(data: Path, out: Path, tmp_path: Path) -> None:
    prepare(folder_of(data), 0, str(tmp_path / "in"), "webdataset")
    (tmp_path / "in" / "train" / "train-00001.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"train-00001\.tar is no readable tar"):
        prepare(prepared(tmp_path / "in", "webdataset"), 0, str(out), "parquet")
    for split in ("train", "valid"):
        whole, left = (len(list((where / split).iterdir())) for where in (tmp_path / "in", out))
        assert left == whole - (split == "train")


def prepare_some(data: Path, out: Path, finished: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepares all shards, or the first ones, after which the command is killed."""
    if finished:
        prepare(folder_of(data), 0, str(out), "parquet")
        return
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "map_items", interfering(killed, 2))
        with pytest.raises(KeyboardInterrupt):
            prepare(folder_of(data), 0, str(out), "parquet")


@pytest.mark.parametrize("finished", [False, True])
def test_another_name_of_the_same_files_goes_on(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    prepare_some(data, out, finished, monkeypatch)
    before = times(out)
    data.rename(tmp_path / "moved")  # the times stay
    manifest = prepare(folder_of(tmp_path / "moved"), 0, str(out), "parquet")
    assert manifest["images"] == len(content(out)) == 40
    assert before
    assert {name: at for name, at in times(out).items() if name in before} == before


@pytest.mark.parametrize("finished", [False, True])
def test_changed_data_are_refused(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """Otherwise a set would mix two states of the data."""
    prepare_some(data, out, finished, monkeypatch)
    before = times(out)
    change_one(data)
    with pytest.raises(UserError, match=r"data\.source changed since --out .* was begun"):
        prepare(folder_of(data), 0, str(out), "parquet")
    assert times(out) == before != {}


def test_the_shards_of_a_set_are_named_by_its_manifest_and_keep_their_digest(
    data: Path, out: Path, tmp_path: Path
) -> None:
    """A set that moved, or was prepared again from moved data, has the same stamp. No folder is listed."""
    prepare(folder_of(data), 0, str(out), "parquet")
    stamp = open_source(prepared(out), 0).stamp
    data.rename(tmp_path / "moved")
    prepare(folder_of(tmp_path / "moved"), 0, str(tmp_path / "again"), "parquet")
    assert open_source(prepared(tmp_path / "again"), 0).stamp == stamp
    out.rename(tmp_path / "out2")
    found = open_source(prepared(tmp_path / "out2"), 0)
    assert found.stamp == stamp
    (tmp_path / "out2" / "train" / "another.parquet").write_bytes(b"not of the set")
    assert sum(len(rows) for rows in read_all(prepared(tmp_path / "out2")).values()) == 40
    names = [shard.name for split in SPLITS for shard in found.shards(split)]
    assert len(set(names)) == len(names)
    (tmp_path / "again" / "manifest.json").unlink()
    assert open_source(prepared(tmp_path / "again"), 0).stamp != stamp


def test_a_part_of_a_set_is_read_by_the_hash_of_the_id(out: Path) -> None:
    prepare(DIGITS, 0, str(out), "parquet")
    original = read_all(DIGITS)["train"]

    def train(**settings: Any) -> Rows:
        return read_all(prepared(out, "parquet", 28, **settings))["train"]

    few, more = train(fraction=0.3), train(fraction=0.6)
    assert 100 < len(few) < 250
    assert set(few.ids) < set(more.ids) < set(original.ids)
    assert_equal(few, original.take([original.ids.index(name) for name in few.ids]))
