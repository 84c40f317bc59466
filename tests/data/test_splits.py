"""Splits are disjoint, complete, seeded and nested."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import HashSplit, holdout, stratified, subset, unit_hash


def test_holdout_is_disjoint_complete_and_seeded() -> None:
    kept, held_out = holdout(range(101), 0.1, seed=3)
    assert len(held_out) == 10
    assert sorted(kept + held_out) == list(range(101))
    assert holdout(range(101), 0.1, seed=3) == (kept, held_out)
    assert holdout(range(101), 0.1, seed=4)[1] != held_out


def test_stratified_keeps_the_share_of_each_class() -> None:
    labels = np.repeat(np.arange(3), [100, 50, 10]).astype(np.int64)
    test, valid, train = stratified(labels, (0.1, 0.2), seed=0)
    assert sorted(test + valid + train) == list(range(160))
    assert Counter(labels[test].tolist()) == {0: 10, 1: 5, 2: 1}
    assert Counter(labels[valid].tolist()) == {0: 20, 1: 10, 2: 2}


def test_test_images_are_the_same_with_every_seed() -> None:
    """Else a run could choose settings by images that another run tests on."""
    labels = np.repeat(np.arange(3), [100, 50, 10]).astype(np.int64)
    drawn = [stratified(labels, (0.1, 0.2), seed) for seed in range(3)]
    names = [f"n{i}" for i in range(3000)]
    for seed in range(3):
        rule = HashSplit(seed, 0.2, 0.3)
        found = [rule.split_of(name) for name in names]
        drawn.append([[i for i, s in enumerate(found) if s == split] for split in ("test", "valid", "train")])
    for same in (drawn[:3], drawn[3:]):
        assert same[0][0] == same[1][0] == same[2][0]
        assert len({tuple(valid) for _, valid, _ in same}) == 3
    for test, valid, _ in drawn[3:]:
        assert len(test) == pytest.approx(900, abs=120)
        assert len(valid) == pytest.approx(600, abs=100)


def test_subsets_are_exact_and_nested() -> None:
    for small, large in ((0.0001, 0.01), (0.01, 0.1), (0.1, 1.0)):
        few, many = subset(range(1000), small, seed=1), subset(range(1000), large, seed=1)
        assert len(few) == max(round(1000 * small), 1)
        assert len(set(few)) == len(few)
        assert set(few) < set(many)


def test_hash_is_uniform_and_stable() -> None:
    values = np.array([unit_hash(0, "split", f"image-{i}") for i in range(4000)])
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand seeds, and this is one seed.
    assert np.abs(np.sort(values) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / np.sqrt(4000)
    assert unit_hash(0, "split", "image-0") == 0.22664443979919824  # prepared sets rely on it
    assert unit_hash(0, "split", "a") != unit_hash(1, "split", "a") != unit_hash(1, "fraction", "a")


def test_hash_split_covers_each_row_once_and_nests_fractions() -> None:
    names = [f"n{i}" for i in range(3000)]

    def train(fraction: float) -> set[str]:
        rule = HashSplit(0, 0.1, 0.2, fraction)
        return {name for name in names if rule.kept_in(name) == "train"}

    rule = HashSplit(0, 0.1, 0.2)
    found = Counter(rule.split_of(name) for name in names)
    assert found["valid"] == pytest.approx(300, abs=70)
    assert found["test"] == pytest.approx(600, abs=90)
    assert all(rule.kept_in(name) == rule.split_of(name) for name in names)
    assert train(0.01) < train(0.1) < train(1.0)
    assert len(train(0.1)) == pytest.approx(210, abs=60)


def test_hash_split_respects_what_the_source_states() -> None:
    rule = HashSplit.of(DataConfig(valid_fraction=0.5, test_fraction=0.4), 0, own={"test"})
    assert {rule.split_of(f"{i}", "train") for i in range(200)} == {"train", "valid"}
    assert {rule.split_of(f"{i}", "test") for i in range(200)} == {"test"}
    assert rule.possible("train") == ("train", "valid")
    assert rule.possible("test") == ("test",)


def test_rows_refuse_bad_shapes_and_repeated_ids() -> None:
    images = np.zeros((2, 1, 4, 4), np.uint8)
    floats: Any = images.astype(np.float32)
    three = np.zeros(3, np.int64)
    for ids, pixels, labels in (("aa", images, None), ("ab", floats, None), ("ab", images, three)):
        with pytest.raises(ValueError, match=r"ids|uint8|labels"):
            Rows(list(ids), pixels, labels)
