"""Many shards are read as fewer, with the same rows: the driver does no more for more data."""

import resource
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.storage import copy, list_files, open_filesystem, write_bytes
from npdraw_dist.data import shard_writer, shards
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.parses import Parses, to_parquet, write_list
from npdraw_dist.data.rows import Reject, Rows
from npdraw_dist.data.shard_writer import Encoded, ShardFolder, ShardWriter, write_shards
from npdraw_dist.data.shards import Source
from tests.helpers.counting import Counting
from tests.helpers.in_process import map_here
from tests.helpers.s3 import flaky_proxy, s3_server

FEW = 32
DATA = DataConfig.model_validate({"source": "imagefolder", "path": "x", "image_size": 2, "channels": 1})
Worked = Callable[[int, int], dict[str, int]]


def small_rows(rows: int, flawed: bool, number: int) -> Rows:
    """`rows` images of 2 x 2 pixels that show the number. flawed: and a reject and a blank one."""
    images = np.full((rows, 1, 2, 2), number % 256, np.uint8)
    ids = [f"{number}-{i}" for i in range(rows)]
    if not flawed:
        return Rows(ids, images)
    return Rows(ids, images, None, [Reject(f"bad-{number}", "unreadable")], {"blank": 1})


def many_shards(number: int, rows: int = 2, flawed: bool = False) -> Source:
    """`number` reads of `rows` training images each."""
    train = [partial(small_rows, rows, flawed, n) for n in range(number)]
    counts = {"train": number * rows, "valid": 0, "test": 0}
    inputs = Inputs(fs.LocalFileSystem(), "", ())
    return Source(DATA, 0, {"train": train, "valid": [], "test": []}, counts, inputs)  # type: ignore[arg-type]


@pytest.fixture
def worked(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Worked:
    """worked(shards, rows): the driver's requests and bytes to write so many, start again and open them.

    The work of tasks is done here too, but not counted.
    """
    counting = Counting()

    def in_tasks(items: Sequence[Any], work: Callable[[Any], Any], *rest: Any, **more: Any) -> Iterator[Any]:
        found = map_here(items, work)
        while True:
            with counting.uncounted():
                result = next(found, None)
            if result is None:
                return
            yield result

    def call(number: int, rows: int) -> dict[str, int]:
        counting.counts = {"requests": 0, "bytes": 0}
        folder = ShardFolder(fs.PyFileSystem(counting), str(tmp_path_factory.mktemp("run")), "made from")
        writer = ShardWriter(folder, lambda rows: Encoded(to_parquet(rows)))
        for new in (number * rows, 0):
            folder.claim()
            written = write_shards(writer, many_shards(number, rows), DATA, lambda images, rate: None)
            assert (written.images, written.new) == (number * rows, new)
            files = {facts.file: facts.rows for facts in written.shards if facts.file}
            write_list(folder.filesystem, folder.root, {"train": files})
        assert len(Parses.of_split(folder.filesystem, folder.root, "train")) == number * rows
        return counting.counts

    monkeypatch.setattr(shard_writer, "map_items", in_tasks)
    monkeypatch.setattr(shards, "FEW", FEW)
    return call


def test_the_driver_does_the_same_for_more_shards_and_more_images(worked: Worked) -> None:
    base = worked(FEW, 1)
    assert 2 * FEW < base["requests"] < 8 * FEW  # it reads sidecars and hashes of a few images here
    for more in (worked(8 * FEW, 1), worked(FEW, 20)):
        assert more["requests"] == base["requests"]


def test_many_images_are_compared_in_tasks(worked: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    """From some number of ids on the driver reads no hash: fewer bytes than those of the ids."""
    few = worked(FEW, 50)
    monkeypatch.setattr("npdraw_dist.data.repeats.IDS_AT_ONCE", 800)
    many = worked(FEW, 50)
    assert few["bytes"] - many["bytes"] > 2 * FEW * 50 * 16  # written and read again
    assert few["requests"] - many["requests"] == 2 * FEW
    assert worked(FEW, 200)["bytes"] < 1.05 * many["bytes"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_shards_take_less_than_a_gigabyte(worked: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one process here: driver and tasks."""
    monkeypatch.setattr(shards, "FEW", 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert worked(1_000_000, 1)["requests"] < 8 * 2048
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_requests_to_a_store_are_few(tmp_path: Path) -> None:
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "a").write_bytes(b"1")
    (tmp_path / "from" / "deep" / "b").write_bytes(b"22")
    local = open_filesystem(str(tmp_path))[0]
    with s3_server() as bucket, flaky_proxy() as faults:
        filesystem, root = open_filesystem(f"{bucket}/few")
        faults.seen.clear()
        copy(local, str(tmp_path / "from"), filesystem, f"{root}/to")
        assert faults.seen == {"PUT": 2}  # no folders
        faults.seen.clear()
        assert list_files(filesystem, f"{root}/to") == [(f"{root}/to/a", 1), (f"{root}/to/deep/b", 2)]
        assert faults.seen == {"GET": 1}
        write_bytes(filesystem, f"{root}/a.parquet", to_parquet(small_rows(50, False, 0)))
        faults.seen.clear()
        with pq.ParquetFile(f"{root}/a.parquet", filesystem=filesystem, pre_buffer=True) as file:
            file.read_row_groups([0], columns=["id", "image", "label"])
        assert faults.seen["HEAD"] == 1
        assert faults.seen["GET"] <= 2  # the footer, and the columns


def test_few_shards_stay_as_they_are() -> None:
    found = many_shards(2 * shards.FEW - 1).shards("train")
    assert [shard.name for shard in found[-2:]] == ["train-02045", "train-02046"]
    assert [len(shard.read()) for shard in found[:2]] == [2, 2]
    assert many_shards(5).shards("valid") == []


@pytest.mark.parametrize(("count", "most", "each"), [(2 * FEW, 100, 2), (50 * FEW + 17, 7, 7)])
def test_merged_shards_have_all_rows_in_their_order(
    count: int, most: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "FEW", FEW)
    monkeypatch.setattr(shards, "MOST_BYTES", most * 4 * DATA.shard_rows)
    found = many_shards(count, flawed=True).shards("train")
    assert len(found) == -(-count // each)
    assert len({shard.name for shard in found}) == len(found)
    assert all(shard.name.endswith(f"x{each}") and shard.split == "train" for shard in found)
    ids = [name for shard in found for name in shard.read().ids]
    assert ids == [f"{n}-{i}" for n in range(count) for i in range(2)]
    rows = found[1].read()
    assert [reject.id for reject in rows.rejects] == [f"bad-{n}" for n in range(each, 2 * each)]
    assert rows.left_out == {"blank": each}
    assert rows.images[:, 0, 0, 0].tolist() == [n % 256 for n in range(each, 2 * each) for _ in range(2)]


def test_an_id_of_two_merged_shards_stays_once_and_unknown_labels_are_minus_one() -> None:
    images = np.zeros((2, 1, 2, 2), np.uint8)
    one, two = Rows(["a", "b"], images, np.array([3, 4])), Rows(["b", "c"], images + 9)
    rows = Rows.cat([one, two])
    assert rows.ids == ["a", "b", "c"]
    assert rows.images[:, 0, 0, 0].tolist() == [0, 0, 9]
    assert rows.known_labels().tolist() == [3, 4, -1]
    assert rows.rejects == [Reject("b", "duplicate id")]
    assert Rows.cat([Rows(["a", "b"], images), Rows([], images[:0])]).labels is None
