"""Snapping against brute force over all pairs."""

import numpy as np
import pytest

from npdraw_dist.bank import shards as shard_file
from npdraw_dist.bank.kmeans import snap
from npdraw_dist.bank.shards import LocalShards


def _brute_force(centroids: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy pairing over all (K, M) distances: patches and distances of the centroids."""
    distances = ((patches[None] / 255.0 - centroids[:, None].astype(np.float64)) ** 2).sum(-1)
    found, cost = np.full(len(centroids), -1), np.zeros(len(centroids))
    while (found < 0).any():
        centroid, patch = np.unravel_index(distances.argmin(), distances.shape)
        found[centroid], cost[centroid] = patch, distances[centroid, patch]
        distances[centroid] = np.inf
        distances[:, (patches == patches[patch]).all(1)] = np.inf
    return found, cost


@pytest.mark.parametrize("levels", [256, 2])
def test_snap_is_brute_force(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "CHUNK", 150)
    rng = np.random.default_rng(levels)
    patches = (rng.integers(0, levels, (700, 6)) * (255 // (levels - 1))).astype(np.uint8)
    centroids = rng.random((25, 6)).astype(np.float32)
    got = snap(centroids, LocalShards([patches], gpu=False))
    found, cost = _brute_force(centroids, patches)
    np.testing.assert_array_equal(got.patches, patches[found])
    np.testing.assert_allclose(got.distances, cost, rtol=1e-5)
    np.testing.assert_array_equal(patches[got.indices], got.patches)
    assert len(np.unique(got.patches, axis=0)) == 25


def test_equal_centroids_get_different_patches() -> None:
    patches = np.repeat(np.arange(0, 240, 12, dtype=np.uint8)[:, None], 3, 1)
    shards = LocalShards([np.tile(patches, (10, 1))], gpu=False)
    got = snap(np.full((20, 3), 0.5, np.float32), shards)
    np.testing.assert_array_equal(np.sort(got.patches[:, 0]), patches[:, 0])
