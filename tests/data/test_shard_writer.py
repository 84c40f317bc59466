"""One shard at a time: the file is whole before its sidecar is there, and repeated ids are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.data import repeats, shard_writer
from npdraw_dist.data.repeats import hash_of, read_hashes
from npdraw_dist.data.rows import Reject, Rows
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
