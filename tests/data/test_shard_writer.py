"""A shard's file is whole before its sidecar is there; repeated ids are left out; too many rejects stop."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data import repeats, shard_writer
from npdraw_dist.data.repeats import (
    Hash,
    RepeatFinder,
    hash_of,
    ranges_of,
    read_hashes,
    write_hashes,
)
from npdraw_dist.data.rows import Reject, RejectLimit, Rows
from npdraw_dist.data.shard_writer import Encoded, ShardFolder, ShardWriter, Written, repeated_in
from npdraw_dist.data.shards import Shard

LOCAL = fs.LocalFileSystem()


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


def test_an_error_of_a_task_is_raised(folder: ShardFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "IDS_AT_ONCE", 1)
    monkeypatch.setattr(shard_writer, "map_items", lambda *_, **__: iter([UserError("no storage")]))
    facts = [ShardWriter(folder, IdEncoder(), "txt")(shard_of(("a", "b")))]
    with pytest.raises(UserError, match="no storage"):
        repeated_in(folder, facts, across_splits=True)


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
