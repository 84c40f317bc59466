"""Ids in several shards, against a set; and when too many rejects are clear."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data import repeats
from npdraw_dist.data.repeats import (
    Hash,
    RepeatFinder,
    hash_of,
    ranges_of,
    read_hashes,
    write_hashes,
)
from npdraw_dist.data.rows import RejectLimit

LOCAL = fs.LocalFileSystem()


def by_sets(order: Sequence[str], ids: dict[str, list[str]]) -> dict[str, set[Hash]]:
    seen: set[str] = set()
    found: dict[str, set[Hash]] = {}
    for shard in order:
        if again := seen & set(ids[shard]):
            found[shard] = {hash_of(name) for name in again}
        seen |= set(ids[shard])
    return found


def written(folder: Path, ids: dict[str, list[str]], order: Sequence[str]) -> RepeatFinder:
    for shard, names in ids.items():
        write_hashes(LOCAL, f"{folder}/{shard}.ids", names)
    return RepeatFinder(LOCAL, str(folder), tuple(order))


@pytest.mark.parametrize("first_bits", [64, 6])  # 6: most first halves are shared by different ids
@pytest.mark.parametrize("at_once", [1000, 100, 1])
def test_repeated_ids_are_those_of_a_set(
    first_bits: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = repeats.hash_of
    kept = ((1 << first_bits) - 1) << (64 - first_bits)
    monkeypatch.setattr(repeats, "hash_of", lambda name: (original(name)[0] & kept, original(name)[1]))
    monkeypatch.setattr(repeats, "IDS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    ids = {f"s{n}": [f"r{i}" for i in rng.choice(2000, 60, replace=False)] for n in range(12)}
    order = [f"s{n}" for n in rng.permutation(12)]
    finder, tasks = written(tmp_path, ids, order), ranges_of(720)
    found: dict[str, set[Hash]] = {}
    for task in tasks:
        for shard, hashes in finder(task).items():
            found.setdefault(shard, set()).update(hashes)
    expected = by_sets(order, ids)
    assert expected
    assert {k: {h[1] for h in v} for k, v in found.items()} == {
        k: {h[1] for h in v} for k, v in expected.items()
    }
    assert [len(tasks), tasks[-1:]] == {
        1000: [1, [(0, 256)]],
        100: [8, [(224, 256)]],
        1: [256, [(255, 256)]],
    }[at_once]


def test_a_range_of_hashes_is_read_alone(tmp_path: Path) -> None:
    names = [f"image-{i}" for i in range(500)]
    write_hashes(LOCAL, f"{tmp_path}/a.ids", names)
    whole = read_hashes(LOCAL, f"{tmp_path}/a.ids")
    assert {tuple(row) for row in whole.tolist()} == {hash_of(name) for name in names}
    parts = [read_hashes(LOCAL, f"{tmp_path}/a.ids", first, first + 64) for first in (0, 64, 128, 192)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert all(len(part) > 80 for part in parts)
    assert {int(high) >> 56 for high, _ in parts[1].tolist()} <= set(range(64, 128))
    write_hashes(LOCAL, f"{tmp_path}/none.ids", [])
    assert read_hashes(LOCAL, f"{tmp_path}/none.ids").shape == (0, 2)
    assert ranges_of(0) == []


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
