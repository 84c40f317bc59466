"""The ingest writes whole shards before their sidecars, leaves out repeated ids and stops at many bad rows.

It reads many parts as fewer pieces with the same rows, so the driver does no more for more data.
"""

import json
import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data import ingest as module
from npdraw_dist.data import repeats, shards
from npdraw_dist.data.ingest import ingest, manifest_of
from npdraw_dist.data.parquet import digest_of, images_to_parquet, rows_of
from npdraw_dist.data.repeats import repeated_ids, write_hashes
from npdraw_dist.data.rows import Reject, RejectLimit, Rows
from npdraw_dist.data.shard_folder import ShardFolder, Written
from npdraw_dist.data.shards import Canonical, Part, Source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import copy, list_files, open_filesystem, write_bytes
from tests.helpers.counting import Counting
from tests.helpers.in_process import interfering, killed, map_in_process
from tests.helpers.s3 import flaky_proxy, s3_server

LOCAL = fs.LocalFileSystem()
FEW = 32
DATA = DataConfig.model_validate(
    {"source": "imagefolder", "path": "x", "image_size": 2, "channels": 1, "max_bad_fraction": 0.9}
)
Worked = Callable[[int, int], dict[str, int]]


def rows_named(ids: Sequence[str], flawed: bool = False) -> Rows:
    """Images of 2 x 2 pixels that the id decides. flawed: also a reject and a blank row."""
    images = np.zeros((len(ids), 1, 2, 2), np.uint8)
    for image, name in zip(images, ids, strict=True):
        image[:] = sum(name.encode()) % 256
    more: Any = ([Reject(f"bad-{ids[0]}", "unreadable")], {"blank": 1}) if flawed else ()
    return Rows(list(ids), images, None, *more)


def read_some(rows: dict[Split, Rows], wanted: Collection[Split]) -> dict[Split, Rows]:
    return {split: own for split, own in rows.items() if split in wanted}


def source_of(*pieces: dict[Split, Rows]) -> Source:
    parts = [Part(tuple(piece), partial(read_some, piece)) for piece in pieces]
    counts = {split: sum(len(p[split]) for p in pieces if split in p) for split in SPLITS}
    return Source(DATA, 0, parts, counts, "stamp")


def claimed(path: Path) -> ShardFolder:
    made = ShardFolder(LOCAL, str(path), "abc")
    assert made.owner() is None
    made.claim()
    assert made.owner() == "abc"
    return made


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return claimed(tmp_path / "data")


def read(folder: ShardFolder, written: Written) -> dict[str, Rows]:
    return {f.shard: rows_of(pq.read_table(f"{folder.root}/{f.file}")) for f in written.shards if f.file}


def test_a_piece_is_read_once_and_its_splits_are_shards(folder: ShardFolder) -> None:
    calls = []

    def counted(wanted: Collection[Split]) -> dict[Split, Rows]:
        calls.append(tuple(wanted))
        rows: dict[Split, Rows] = {"train": rows_named("ab", flawed=True), "test": rows_named("c")}
        return read_some(rows, wanted)

    source = Source(DATA, 0, [Part(("train", "test"), counted)], {}, "stamp")
    written = ingest(source, DATA, folder, 0)
    assert calls == [("train", "test")]
    found = read(folder, written)
    assert {name: sorted(rows.ids) for name, rows in found.items()} == {
        "train-00000": ["a", "b"],
        "test-00000": ["c"],
    }
    assert written.splits == {"train": 2, "valid": 0, "test": 1}
    assert written.left_out == {"blank": 1}
    assert (Path(folder.root) / "rejects.jsonl").read_text().count("unreadable") == 1
    table = pq.read_table(f"{folder.root}/train/train-00000.parquet")
    assert table.column_names == ["id", "image", "label", "split"]
    assert table.schema.metadata[b"shape"] == b"[1, 2, 2]"
    assert set(table["split"].to_pylist()) == {"train"}
    again = ingest(source, DATA, folder, 0)
    assert (len(calls), again.new, again.images) == (1, 0, 3)


def test_a_split_that_is_not_requested_can_follow(folder: ShardFolder) -> None:
    source = source_of({"train": rows_named("ab"), "test": rows_named("c")})
    first = ingest(source, DATA, folder, 0, ("train", "valid"))
    assert first.splits == {"train": 2, "valid": 0}
    assert not (Path(folder.root) / "test").exists()
    whole = ingest(source, DATA, folder, 0)
    assert whole.splits == {"train": 2, "valid": 0, "test": 1}
    assert whole.digests["train"] == first.digests["train"]


def test_only_training_rows_are_mixed_and_always_alike(tmp_path: Path) -> None:
    ids = "abcdefghijklmnopqrstuvwxyz"
    orders = []
    for number in range(2):
        folder = claimed(tmp_path / str(number))
        made = ingest(source_of({"train": rows_named(ids), "test": rows_named(ids)}), DATA, folder, 3)
        found = read(folder, made)
        assert "".join(found["test-00000"].ids) == ids
        orders.append(found["train-00000"].ids)
    assert orders[0] == orders[1] != list(ids)
    assert sorted(orders[0]) == list(ids)


def test_a_shard_is_not_done_without_its_whole_file(folder: ShardFolder) -> None:
    source = source_of({"train": rows_named("ab")})
    ingest(source, DATA, folder, 0)
    file = Path(folder.root) / "train" / "train-00000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert folder.done() == {}
    assert ingest(source, DATA, folder, 0).new == 2
    assert file.read_bytes() == whole
    (Path(folder.root) / "train" / "x.parquet.1234.part").write_bytes(b"half")
    folder.claim()
    assert set(folder.done()) == {"train-00000"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_shards_made_from_something_else_go(folder: ShardFolder) -> None:
    ingest(source_of({"train": rows_named("ab")}), DATA, folder, 0)
    other = ShardFolder(LOCAL, folder.root, "other")
    assert other.owner() == "abc"
    other.claim()
    assert other.done() == {}
    assert not (Path(folder.root) / "train").exists()


def test_a_killed_ingest_goes_on_where_it_was(folder: ShardFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[dict[Split, Rows]] = [{"train": rows_named([f"{n}-a", f"{n}-b"])} for n in range(4)]
    source = source_of(*pieces)
    with monkeypatch.context() as patch:
        patch.setattr(module, "map_items", interfering(killed, 2))
        with pytest.raises(KeyboardInterrupt):
            ingest(source, DATA, folder, 0)
    assert len(folder.done()) == 2
    written = ingest(source, DATA, folder, 0)
    assert (written.new, written.images) == (4, 8)


def test_an_unreadable_piece_loses_no_other(folder: ShardFolder) -> None:
    def broken(wanted: Collection[Split]) -> dict[Split, Rows]:
        raise UserError("b.tar is no readable tar")

    parts = [Part(("train",), broken), Part(("train",), partial(read_some, {"train": rows_named("ab")}))]
    with pytest.raises(UserError, match=r"b\.tar is no readable tar.*the same command resumes"):
        ingest(Source(DATA, 0, parts, {}, "stamp"), DATA, folder, 0)
    assert set(folder.done()) == {"train-00001"}


def test_repeated_ids_are_rejected_and_a_shard_of_none_has_no_file(folder: ShardFolder) -> None:
    """An id of two splits is repeated only across splits, as `prepare` wants it."""
    source = source_of(
        {"train": rows_named("ab")},
        {"train": rows_named("b")},
        {"train": rows_named("ac"), "test": rows_named("a")},
    )
    written = ingest(source, DATA, folder, 0)
    assert {name: sorted(rows.ids) for name, rows in read(folder, written).items()} == {
        "train-00000": ["a", "b"],
        "train-00002": ["c"],
        "test-00002": ["a"],
    }
    assert sorted(path.name for path in (Path(folder.root) / "train").iterdir()) == [
        "train-00000.parquet",
        "train-00002.parquet",
    ]
    lines = (Path(folder.root) / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["duplicate id"] * 2
    assert ingest(source, DATA, folder, 0).images == 4
    strict = ingest(source, DATA, folder, 0, across_splits=True)
    assert strict.splits == {"train": 3, "valid": 0, "test": 0}


def test_the_digest_is_of_the_rows_alone(tmp_path: Path) -> None:
    rows = rows_named("abcdef")
    digests = set()
    for number, cut in enumerate((2, 3)):
        folder = claimed(tmp_path / str(number))
        made = ingest(source_of({"train": rows[:cut]}, {"train": rows[cut:]}), DATA, folder, number)
        digests.add(made.digests["train"])
    assert digests == {f"{digest_of(rows):032x}"}
    others = [Rows(["x", *rows.ids[1:]], rows.images), Rows(rows.ids, 255 - rows.images)]
    others += [Rows(rows.ids, rows.images, np.arange(6)), Rows(rows.ids, rows.images, words=list("uvwxyz"))]
    assert len({digest_of(one) for one in [rows, *others]}) == 5


@pytest.mark.parametrize(("first_bits", "at_once", "group"), [(64, 1000, 512), (6, 100, 5)])
def test_repeated_ids_are_those_of_a_set(
    first_bits: int, at_once: int, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """first_bits: with 6, different ids share most first halves. group: shards that are joined."""
    original = repeats.hash_of
    kept = ((1 << first_bits) - 1) << (64 - first_bits)
    monkeypatch.setattr(repeats, "hash_of", lambda name: (original(name)[0] & kept, original(name)[1]))
    monkeypatch.setattr(repeats, "IDS_AT_ONCE", at_once)
    monkeypatch.setattr(repeats, "GROUP", group)
    rng = np.random.default_rng(0)
    ids = {f"s{n}": [f"r{i}" for i in rng.choice(2000, 60, replace=False)] for n in range(12)}
    order = [f"s{n}" for n in rng.permutation(12)]
    for shard, names in ids.items():
        write_hashes(LOCAL, f"{tmp_path}/{shard}.ids", names)
    found = repeated_ids(LOCAL, str(tmp_path), order, 720)
    seen, expected = set[str](), dict[str, set[int]]()
    for shard in order:
        if again := seen & set(ids[shard]):
            expected[shard] = {original(name)[1] for name in again}
        seen |= set(ids[shard])
    assert expected
    assert {shard: {low for _, low in hashes} for shard, hashes in found.items()} == expected
    assert not list(tmp_path.glob("joined*"))


def limit(total: int | None, train: int, valid: int = 0) -> RejectLimit:
    splits = [("train",)] * train + [("valid",)] * valid
    return RejectLimit(DataConfig(max_bad_fraction=0.1), splits, total)


def test_a_known_total_stops_when_it_is_certain() -> None:
    rows = limit(1000, 10)
    assert not rows.add(("train",), 40, 60)
    assert not rows.add(("train",), 60, 40)  # 100 of 1000 are allowed
    assert rows.add(("train",), 99, 1)
    assert (rows.rejects, rows.rows) == (101, 300)


def test_an_unknown_total_is_that_of_pieces_as_long_as_those_read() -> None:
    rows = limit(None, 10, valid=10)
    assert not rows.add(("train",), 0, 999)  # too few rows to tell
    assert rows.add(("train",), 1, 0)  # 999 bad, 5000 rows to be expected
    one = limit(None, 20)
    assert not one.add(("train",), 0, 2000)  # one bad piece of 20
    assert not one.add(("train",), 2000, 0)
    assert not one.add(("valid",), 100, 0)
    assert not one.add(("train",), 0, 2000)
    assert one.add(("train",), 0, 2000)


def test_too_many_bad_rows_stop_it_and_are_listed(folder: ShardFolder) -> None:
    pieces: list[dict[Split, Rows]] = [{"train": rows_named([f"{n}"], flawed=True)} for n in range(4)]
    strict = DATA.model_copy(update={"max_bad_fraction": 0.1})
    with pytest.raises(UserError, match=r"of 4 rows .*max_bad_fraction|rows of data.source"):
        ingest(source_of(*pieces), strict, folder, 0)
    assert "unreadable" in (Path(folder.root) / "rejects.jsonl").read_text()
    assert ingest(source_of(*pieces), DATA, folder, 0).images == 4


def test_written_shards_are_a_source(folder: ShardFolder) -> None:
    source = source_of({"train": rows_named("ab")}, {"train": rows_named("cd"), "valid": rows_named("e")})
    written = ingest(source, DATA, folder, 0)
    manifest = manifest_of(source, folder, written, DATA)
    assert (manifest["images"], manifest["rejected"]) == (5, 0)
    (Path(folder.root) / "manifest.json").write_text(json.dumps(manifest))
    found = Canonical.at(LOCAL, folder.root)
    assert found is not None
    assert found.manifest.digest == manifest["digest"]
    again = found.source(DATA, 7)
    assert [again.count(split) for split in SPLITS] == [4, 1, 0]
    ids = {split: sorted(i for s in again.shards(split) for i in s.read().ids) for split in SPLITS}
    assert ids == {"train": list("abcd"), "valid": ["e"], "test": []}


def many_pieces(number: int, rows: int = 2, flawed: bool = False) -> Source:
    def own(number: int, wanted: Collection[Split]) -> dict[Split, Rows]:
        return {"train": rows_named([f"{number}-{i}" for i in range(rows)], flawed)}

    parts = [Part(("train",), partial(own, n)) for n in range(number)]
    return Source(DATA, 0, parts, {"train": number * rows, "valid": 0, "test": 0}, "stamp")


@pytest.fixture
def worked(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Worked:
    """worked(pieces, rows): the requests and bytes of the driver, without tasks, to write so many twice."""
    counting = Counting()

    def in_tasks(items: Sequence[Any], work: Callable[[Any], Any], *rest: Any, **more: Any) -> Iterator[Any]:
        found = map_in_process(items, work)
        while True:
            with counting.uncounted():
                result = next(found, None)
            if result is None:
                return
            yield result

    def call(number: int, rows: int) -> dict[str, int]:
        counting.counts = Counter()
        root = str(tmp_path_factory.mktemp("run"))
        folder = ShardFolder(fs.PyFileSystem(counting), root, "made from")
        for new in (number * rows, 0):
            folder.claim()
            written = ingest(many_pieces(number, rows), DATA, folder, 0)
            assert (written.images, written.new) == (number * rows, new)
        return counting.counts

    monkeypatch.setattr(module, "map_items", in_tasks)
    monkeypatch.setattr(repeats, "map_items", in_tasks)
    monkeypatch.setattr(shards, "FEW", FEW)
    return call


def test_the_driver_does_the_same_for_more_pieces_and_more_images(worked: Worked) -> None:
    base = worked(FEW, 1)
    assert 2 * FEW < base["requests"] < 9 * FEW  # it reads sidecars, and hashes of so few images
    for more in (worked(8 * FEW, 1), worked(FEW, 20)):
        assert more["requests"] == base["requests"]


def test_no_task_reads_the_hashes_of_every_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the shards take twice the requests: each file of hashes is read once, whatever the tasks."""
    counting = Counting()
    monkeypatch.setattr(repeats, "GROUP", 8)

    def requests(shards: int, tasks: int) -> int:
        monkeypatch.setattr(repeats, "IDS_AT_ONCE", -(-shards * 4 // tasks))
        filesystem = fs.PyFileSystem(counting)
        names = [f"s{n}" for n in range(shards)]
        for name in names:
            write_hashes(filesystem, f"{tmp_path}/{name}.ids", [f"{name}-{i}" for i in range(4)])
        counting.counts = Counter()
        assert repeated_ids(filesystem, str(tmp_path), names, 4 * shards) == {}
        return counting.counts["requests"]

    few, more_tasks, more_shards = requests(32, 2), requests(32, 4), requests(64, 2)
    assert more_shards <= 2 * few
    assert more_tasks - few < 32  # of joined files alone


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_pieces_take_less_than_a_gigabyte(worked: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Driver and tasks are in this process."""
    monkeypatch.setattr(shards, "FEW", 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert worked(1_000_000, 1)["requests"] < 9 * 2048
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
        write_bytes(filesystem, f"{root}/a.parquet", images_to_parquet(rows_named(list("abcd")), "train"))
        faults.seen.clear()
        with pq.ParquetFile(f"{root}/a.parquet", filesystem=filesystem, pre_buffer=True) as file:
            file.read_row_groups([0], columns=["id", "image", "label"])
        assert faults.seen["HEAD"] == 1
        assert faults.seen["GET"] <= 2  # the footer, and the columns


@pytest.mark.parametrize(
    ("count", "most", "each"), [(2 * FEW - 1, 100, 1), (2 * FEW, 100, 2), (50 * FEW + 17, 7, 7)]
)
def test_merged_pieces_have_all_rows_in_their_order(
    count: int, most: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "FEW", FEW)
    monkeypatch.setattr(shards, "MOST_BYTES", most * 4 * DATA.rows_a_shard)
    found = many_pieces(count, flawed=True).shards("train")
    assert [shard.name for shard in found] == [f"train-{n:05d}" for n in range(-(-count // each))]
    assert many_pieces(5).shards("valid") == []
    ids = [name for shard in found for name in shard.read().ids]
    assert ids == [f"{n}-{i}" for n in range(count) for i in range(2)]
    rows = found[1].read()
    assert [reject.id for reject in rows.rejects] == [f"bad-{n}-0" for n in range(each, 2 * each)]
    assert rows.left_out == {"blank": each}
