"""Shards: each is whole before its sidecar is there, repeated ids are left out, too many rejects stop.

And many are read as fewer, with the same rows: the driver does no more for more data.
"""

import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.shard_writer import (
    Encoded,
    ShardFolder,
    ShardWriter,
    Written,
    repeated_in,
    write_shards,
)
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.storage import copy, list_files, open_filesystem, write_bytes
from npdraw_dist.data import repeats, shard_writer, shards
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.parses import Parses, write_list
from npdraw_dist.data.repeats import Hash, RepeatFinder, hash_of, ranges_of, read_hashes, write_hashes
from npdraw_dist.data.rows import Reject, RejectLimit, Rows
from npdraw_dist.data.shards import Shard, Source
from tests.helpers.counting import Counting
from tests.helpers.in_process import map_here
from tests.helpers.s3 import flaky_proxy, s3_server

LOCAL = fs.LocalFileSystem()
FEW = 32
DATA = DataConfig.model_validate({"source": "imagefolder", "path": "x", "image_size": 2, "channels": 1})
Worked = Callable[[int, int], dict[str, int]]


def shard_of(ids: Sequence[str], name: str = "train-00000", split: str = "train") -> Shard:
    images = np.zeros((len(ids), 1, 2, 2), np.uint8)
    rows = Rows(list(ids), images, None, [Reject("bad", "unreadable")], {"twin": len(ids)})
    return Shard(name, split, (lambda: rows,))


@dataclass(frozen=True)
class IdEncoder:
    """The ids as text."""

    fails: bool = False

    def __call__(self, rows: Rows) -> Encoded:
        if self.fails:
            raise OSError("disk full")
        return Encoded(" ".join(rows.ids).encode(), {"images": len(rows)})


def ids_of(folder: ShardFolder, shard: str) -> set[str]:
    """Those of the letters a to e whose hashes lie beside a shard."""
    found = set(map(tuple, read_hashes(LOCAL, f"{folder.root}/.done/{shard}.ids").tolist()))
    named = {name for name in "abcde" if hash_of(name) in found}
    assert len(named) == len(found)
    return named


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    made = ShardFolder(LOCAL, str(tmp_path), "abc")
    assert made.owner() is None
    made.claim()
    assert made.owner() == "abc"
    return made


def test_a_written_shard_is_done_with_its_facts(folder: ShardFolder, tmp_path: Path) -> None:
    facts = ShardWriter(folder, IdEncoder(), "txt")(shard_of(("a", "b")))
    assert (tmp_path / "train" / "train-00000.txt").read_text() == "a b"
    assert folder.done() == {"train-00000": facts}
    assert ids_of(folder, "train-00000") == {"a", "b"}
    assert facts.numbers == {"images": 2}
    assert facts.left_out == {"twin": 2}
    other = ShardWriter(folder, IdEncoder(), "txt", {"train-00000": {hash_of("a")}})(shard_of(("a", "b")))
    assert Written([facts, other], 0, ("train",)).left_out == {"twin": 4}
    assert facts.rejects == [{"id": "bad", "reason": "unreadable", "shard": "train-00000"}]
    assert ShardFolder(LOCAL, str(tmp_path), "other").owner() == "abc"


def test_only_training_rows_are_mixed_and_always_alike(folder: ShardFolder, tmp_path: Path) -> None:
    """Images of the other splits have a number by their place in the data."""
    ids = "abcdefghijklmnopqrstuvwxyz"
    orders: dict[str, set[str]] = {}
    for split in ("train", "test", "train"):
        ShardWriter(folder, IdEncoder(), "txt", mixed=3)(shard_of(ids, split, split))
        orders.setdefault(split, set()).add((tmp_path / split / f"{split}.txt").read_text())
    assert orders["test"] == {" ".join(ids)}
    assert len(orders["train"]) == 1
    assert orders["train"] != orders["test"]
    assert sorted(*orders["train"]) == sorted(*orders["test"])


def test_a_shard_is_not_done_without_its_whole_file(folder: ShardFolder, tmp_path: Path) -> None:
    ShardWriter(folder, IdEncoder(), "txt")(shard_of(("a", "b")))
    file = tmp_path / "train" / "train-00000.txt"
    whole = file.read_text()
    file.write_text("a")
    assert folder.done() == {}
    file.write_text(whole)
    assert set(folder.done()) == {"train-00000"}
    (tmp_path / ".done" / "train-00000.ids").unlink()
    assert folder.done() == {}
    file.unlink()
    assert folder.done() == {}


def test_a_failed_write_leaves_the_old_shard(folder: ShardFolder, tmp_path: Path) -> None:
    facts = ShardWriter(folder, IdEncoder(), "txt")(shard_of(("a", "b")))
    with pytest.raises(OSError, match="disk full"):
        ShardWriter(folder, IdEncoder(fails=True), "txt")(shard_of(("c",)))
    assert folder.done() == {"train-00000": facts}
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["train-00000.txt"]


def test_repeated_ids_are_rejected_and_a_shard_of_none_has_no_file(
    folder: ShardFolder, tmp_path: Path
) -> None:
    shards = [shard_of(("a", "b")), shard_of(("b",), "train-00001")]
    for shard in shards:
        ShardWriter(folder, IdEncoder(), "txt")(shard)
    repeated = {"train-00000": {hash_of("b")}, "train-00001": {hash_of("b")}}
    some, none = map(ShardWriter(folder, IdEncoder(), "txt", repeated), shards)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["train-00000.txt"]
    assert ids_of(folder, "train-00000") == {"a"}
    assert (some.rows, none.rows, none.file) == (1, 0, None)
    assert {"id": "b", "reason": "duplicate id", "shard": "train-00001"} in none.rejects
    assert set(folder.done()) == {"train-00000", "train-00001"}


def test_an_id_of_two_splits_is_repeated_only_across_splits(folder: ShardFolder) -> None:
    """`prepare` keeps an image in one split only; the stage `parse` takes the splits as they are."""
    shards = [shard_of(("a", "b")), shard_of(("b", "c"), "test-00000", "test")]
    facts = [ShardWriter(folder, IdEncoder(), "txt")(shard) for shard in shards]
    assert repeated_in(folder, facts, across_splits=False) == {}
    assert repeated_in(folder, facts, across_splits=True) == {"test-00000": {hash_of("b")}}


def by_sets(order: Sequence[str], ids: dict[str, list[str]]) -> dict[str, set[int]]:
    """Shard -> the second halves of the hashes of ids that an earlier shard has too."""
    seen: set[str] = set()
    found: dict[str, set[int]] = {}
    for shard in order:
        if again := seen & set(ids[shard]):
            found[shard] = {hash_of(name)[1] for name in again}
        seen |= set(ids[shard])
    return found


@pytest.mark.parametrize(("first_bits", "at_once", "ranges"), [(64, 1000, 1), (6, 100, 8)])
def test_repeated_ids_are_those_of_a_set(
    first_bits: int, at_once: int, ranges: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """first_bits: of 6, most first halves are shared by different ids."""
    original = repeats.hash_of
    kept = ((1 << first_bits) - 1) << (64 - first_bits)
    monkeypatch.setattr(repeats, "hash_of", lambda name: (original(name)[0] & kept, original(name)[1]))
    monkeypatch.setattr(repeats, "IDS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    ids = {f"s{n}": [f"r{i}" for i in rng.choice(2000, 60, replace=False)] for n in range(12)}
    order = [f"s{n}" for n in rng.permutation(12)]
    for shard, names in ids.items():
        write_hashes(LOCAL, f"{tmp_path}/{shard}.ids", names)
    finder, tasks = RepeatFinder(LOCAL, str(tmp_path), tuple(order)), ranges_of(720)
    found: dict[str, set[Hash]] = {}
    for task in tasks:
        for shard, hashes in finder(task).items():
            found.setdefault(shard, set()).update(hashes)
    expected = by_sets(order, ids)
    assert expected
    assert {shard: {low for _, low in hashes} for shard, hashes in found.items()} == expected
    assert len(tasks) == ranges
    assert tasks[-1] == (256 - 256 // ranges, 256)


def limit(total: int | None, train: int, valid: int = 0) -> RejectLimit:
    splits = ["train"] * train + ["valid"] * valid
    return RejectLimit(DataConfig(max_bad_fraction=0.1), splits, total)


def test_a_known_total_stops_when_it_is_certain() -> None:
    rows = limit(1000, 10)
    assert not rows.add("train", 40, 60)
    assert not rows.add("train", 60, 40)  # 100 of 1000 are allowed
    assert rows.add("train", 99, 1)
    assert (rows.rejects, rows.rows) == (101, 300)


def test_an_unknown_total_is_that_of_shards_as_long_as_those_read() -> None:
    rows = limit(None, 10, valid=10)
    assert not rows.add("train", 0, 999)  # too few rows to tell
    assert rows.add("train", 1, 0)  # 999 bad, 5000 rows to be expected
    one = limit(None, 20)
    assert not one.add("train", 0, 2000)  # one bad shard of 20
    assert not one.add("train", 2000, 0)
    assert not one.add("valid", 100, 0)
    assert not one.add("train", 0, 2000)
    assert one.add("train", 0, 2000)


# Many shards


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
    inputs = Inputs(LOCAL, "", ())
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
        counting.counts = Counter()
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
    monkeypatch.setattr(shards, "MOST_BYTES", most * 4 * DATA.rows_a_shard)
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
