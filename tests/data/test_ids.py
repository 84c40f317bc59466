"""Ids in several shards, against a set; and when too many rejects are clear."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data import rejects as rejects_file
from npdraw_dist.data.rejects import RejectLimit, repeated_ids
from npdraw_dist.data.rows import Rows


def by_sets(order: Sequence[str], ids: dict[str, list[str]]) -> dict[str, set[str]]:
    seen: set[str] = set()
    found: dict[str, set[str]] = {}
    for shard in order:
        if again := seen & set(ids[shard]):
            found[shard] = again
        seen |= set(ids[shard])
    return found


@pytest.mark.parametrize("bits", [64, 8])  # 8: most hashes are shared by different ids
def test_repeated_ids_are_those_of_a_set(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = rejects_file._hash
    monkeypatch.setattr(rejects_file, "_hash", lambda name: original(name) >> (64 - bits))
    rng = np.random.default_rng(0)
    ids = {f"s{n}": [f"r{i}" for i in rng.choice(2000, 60, replace=False)] for n in range(12)}
    order = [f"s{n}" for n in rng.permutation(12)]
    expected = by_sets(order, ids)
    assert expected
    assert repeated_ids(order, ids.__getitem__) == expected


def test_shards_are_read_again_only_where_they_may_repeat() -> None:
    reads: list[str] = []
    lock = threading.Lock()

    def read(shard: str) -> list[str]:
        with lock:
            reads.append(shard)
        return {"a": ["1", "2"], "b": ["3"], "c": ["4", "2"], "d": []}[shard]

    assert repeated_ids("abcd", read) == {"c": {"2"}}
    assert sorted(reads) == ["a", "a", "b", "c", "c", "d"]
    assert repeated_ids([], read) == {}


@dataclass
class Empty:
    split: str
    name: str = ""

    def read(self) -> Rows:
        raise AssertionError


def limit(total: int | None, train: int, valid: int = 0) -> RejectLimit:
    shards = [Empty("train") for _ in range(train)] + [Empty("valid") for _ in range(valid)]
    return RejectLimit(DataConfig(max_bad_fraction=0.1), shards, total)


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
