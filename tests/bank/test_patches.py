"""Patches against Grid.unfold, the reservoir against what a uniform sample must be."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from npdraw_dist.bank.patches import ALL, OVERSAMPLED, Reservoir, draw, extract, unique_rows
from npdraw_dist.core.grid import Grid


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("grid", [Grid(11, 9, 4, 3), Grid(8, 8, 4, 4), Grid(11, 9, 4, 4, True)], ids=str)
def test_places_are_those_of_the_grid(rng: np.random.Generator, grid: Grid) -> None:
    images = rng.integers(0, 256, (300, 3, grid.height, grid.width), dtype=np.uint8)
    images[:200] //= 3  # so that some patches fall under the threshold
    expected = grid.unfold(torch.from_numpy(images)).reshape(300 * grid.places, -1).numpy()
    energy = ((expected / 255.0) ** 2).mean(1)
    threshold = float(np.median(energy))
    got = extract(images, grid, threshold)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected[energy >= threshold])
    np.testing.assert_array_equal(extract(images, grid, 0.0), expected)
    # The negative on white has the same patches.
    white = extract(255 - images, replace(grid, background=1.0), threshold)
    assert white.dtype == np.uint8
    np.testing.assert_array_equal(white, 255 - got)


def numbered(sizes: list[int]) -> list[np.ndarray]:
    """Blocks of rows (n, 4), all different."""
    rows = np.arange(sum(sizes), dtype=np.uint32)[:, None].view(np.uint8)
    return np.split(rows, np.cumsum(sizes)[:-1])


def _sample(order: Iterable[int], blocks: list[np.ndarray], capacity: int, seed: int = 3) -> Reservoir:
    reservoir = Reservoir(capacity)
    for block in order:
        reservoir.add(draw(blocks[block], block, seed))
    return reservoir


def test_reservoir_ignores_the_order_of_blocks() -> None:
    blocks = numbered([3, 0, 50, 7, 200, 1, 90])
    first = _sample(range(7), blocks, 40, seed=5)
    other = _sample([6, 4, 0, 5, 3, 2, 1], blocks, 40, seed=5)
    assert first.seen == other.seen == 351
    np.testing.assert_array_equal(first.result(), other.result())
    assert len(unique_rows(first.result())) == 40
    assert (first.result() != _sample(range(7), blocks, 40, seed=6).result()).any()


def test_reservoir_keeps_all_that_fit() -> None:
    blocks = [np.arange(4, dtype=np.uint8)[:, None], np.arange(4, 9, dtype=np.uint8)[:, None]]
    assert sorted(_sample([1, 0], blocks, 20).result()[:, 0]) == list(range(9))
    assert Reservoir(20).result().shape == (0, 0)


def test_reservoir_is_uniform() -> None:
    rows = np.arange(60, dtype=np.uint8)[:, None]
    blocks = [rows[:10], rows[10:15], rows[15:]]
    counts = np.zeros(60)
    for seed in range(600):
        counts[_sample(range(3), blocks, 12, seed).result()[:, 0]] += 1
    assert counts.sum() == 600 * 12
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_limit_keeps_the_sample_and_drops_most_patches() -> None:
    """A pilot estimates where the keys of the sample end; the other blocks send only patches below."""
    blocks, capacity = numbered([2000] * 40), 1000
    whole, sample = _sample(range(40), blocks, capacity), _sample(range(0, 40, 10), blocks, capacity)
    limit = sample.limit(4 / 40)
    others = [draw(blocks[block], block, 3, limit=limit) for block in range(40) if block % 10]
    assert sum(len(drawn.keys) for drawn in others) < 2 * OVERSAMPLED * capacity
    for drawn in others:
        sample.add(drawn)
    assert sample.seen == whole.seen == 80_000
    assert sample.is_exact(limit)
    np.testing.assert_array_equal(sample.result(), whole.result())


def test_a_limit_that_was_too_low_is_noticed_and_mended() -> None:
    """The pilot had far more patches than the other blocks."""
    blocks, capacity = numbered([5000, *[20] * 30]), 1000
    whole, sample = _sample(range(31), blocks, capacity), _sample([0], blocks, capacity)
    limit = sample.limit(1 / 31)
    for block in range(1, 31):
        sample.add(draw(blocks[block], block, 3, limit=limit))
    assert not sample.is_exact(limit)
    for block in range(1, 31):
        sample.add(replace(draw(blocks[block], block, 3, above=limit), seen=0))
    np.testing.assert_array_equal(sample.result(), whole.result())
    assert sample.seen == whole.seen


def test_where_all_patches_fit_all_are_asked_for() -> None:
    sample = _sample([0], numbered([30, 30]), 100)
    assert sample.limit(1 / 2) == ALL
    assert sample.is_exact(ALL)
    assert Reservoir(100).limit(1.0) == ALL


def test_unique_is_that_of_numpy(rng: np.random.Generator) -> None:
    for dimensions in (1, 8, 25):
        rows = rng.integers(0, 2, (300, dimensions), dtype=np.uint8)
        rows[150:] = rows[rng.integers(0, 150, 150)]
        _, first = np.unique(rows, axis=0, return_index=True)
        np.testing.assert_array_equal(unique_rows(rows), np.sort(first))
