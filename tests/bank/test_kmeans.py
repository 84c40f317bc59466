"""k-means against a NumPy Lloyd and scikit-learn; snapping against brute force over all pairs."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from npdraw_dist.bank import shards as shard_file
from npdraw_dist.bank.kmeans import Clustering, kmeans, lloyd, plus_plus, snap
from npdraw_dist.bank.shards import CHUNK, LocalShards, PatchShard, sums, sums_on
from npdraw_dist.system.errors import UserError


def clustering(patches: np.ndarray, k: int, seed: int) -> Clustering:
    return kmeans(LocalShards([patches], gpu=False), k, seed)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """(7188, 16) uint8: the quarters of scikit-learn's digits."""
    images = (load_digits().images * 255 / 16).astype(np.uint8)
    return images.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)


def _distances(patches: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(M, K) squared, pixels in [0, 1], by brute force in float64."""
    return ((patches[:, None] / 255.0 - centroids[None].astype(np.float64)) ** 2).sum(-1)


def test_step_is_brute_force(patches: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "CHUNK", 1000)  # several chunks, the last one short
    rng = np.random.default_rng(0)
    centroids = rng.random((30, 16)).astype(np.float32)
    distances = _distances(patches, centroids)
    nearest = distances.argmin(1)
    got = PatchShard(patches, 0, gpu=False).step(centroids * 255)
    np.testing.assert_array_equal(got.counts, np.bincount(nearest, minlength=30))
    np.testing.assert_array_equal(got.sums, np.eye(30)[nearest].T @ patches)
    worst = distances.min(1).argmax()
    np.testing.assert_array_equal(got.farthest[0], patches[worst])
    assert got.distance / 255**2 == pytest.approx(distances.min(1).max(), rel=1e-5)


def test_lloyd_is_lloyd(patches: np.ndarray) -> None:
    # Jitter: between real patches many distances tie exactly, and a tie may fall either way.
    jitter = np.random.default_rng(0).random((20, 16)) / 10
    start = (patches[:: len(patches) // 20][:20] / 255 + jitter).astype(np.float32)
    got = lloyd(LocalShards([patches], gpu=False), start, iterations=4)
    centroids, history = start.astype(np.float64), []
    for _ in range(5):
        distances = _distances(patches, centroids)
        nearest = distances.argmin(1)
        history.append(distances.min(1).mean())
        previous, centroids = centroids, np.stack([patches[nearest == k].mean(0) / 255 for k in range(20)])
    np.testing.assert_allclose(got.history, history, rtol=1e-6)
    np.testing.assert_allclose(got.centroids, previous, atol=1e-6)
    np.testing.assert_array_equal(got.sizes, np.bincount(nearest))
    assert got.objective == got.history[-1]


def test_objective_is_that_of_scikit_learn(patches: np.ndarray) -> None:
    got = clustering(patches, 40, seed=0)
    reference = KMeans(40, n_init=1, random_state=0).fit(patches / 255.0)
    assert got.objective < 1.01 * reference.inertia_ / len(patches)
    assert got.objective == pytest.approx(_distances(patches, got.centroids).min(1).mean(), rel=1e-5)
    assert got.history == sorted(got.history, reverse=True)
    assert got.sizes.sum() == len(patches)
    assert got.sizes.min() > 0


def test_all_patches_count_not_a_sample_of_them() -> None:
    rng = np.random.default_rng(0)
    low, high = (rng.integers(0, 90, (count, 4), dtype=np.uint8) for count in (3000, 5000))
    got = clustering(np.concatenate([low, high + 150]).astype(np.uint8), 2, seed=0)
    order = np.argsort(got.sizes)
    np.testing.assert_array_equal(got.sizes[order], [3000, 5000])
    means = np.stack([low.mean(0), 150 + high.mean(0)]) / 255
    np.testing.assert_allclose(got.centroids[order], means, rtol=1e-6)


def test_same_seed_same_bytes(patches: np.ndarray) -> None:
    one, two = (clustering(patches, 12, seed=3) for _ in range(2))
    assert one.centroids.tobytes() == two.centroids.tobytes()
    assert one.history == two.history
    assert one.centroids.tobytes() != clustering(patches, 12, seed=4).centroids.tobytes()


def test_empty_clusters_move_to_the_farthest_patches(patches: np.ndarray) -> None:
    start = np.repeat((patches[:1] / 255).astype(np.float32), 15, 0)
    start[1] = 1e3  # and one that lies far from everything
    got = lloyd(LocalShards([patches], gpu=False), start, iterations=5)
    assert got.sizes.min() > 0
    assert len(np.unique(got.centroids, axis=0)) == 15
    # After no iteration the centroids are the first patch and greedy farthest points.
    chosen = patches[:1] / 255.0
    for _ in range(14):
        worst = _distances(patches, chosen).min(1).argmax()
        chosen = np.concatenate([chosen, patches[worst : worst + 1] / 255.0])
    at_once = lloyd(LocalShards([patches], gpu=False), start[[0] * 15], iterations=0).centroids
    assert {tuple(row) for row in (at_once * 255).round()} == {tuple(row) for row in (chosen * 255).round()}


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_an_empty_cluster_moves_to_the_patch_farthest_over_all_shards(shard: int) -> None:
    parts = [np.full((4, 3), value, np.uint8) for value in (0, 10, 20)]
    parts[shard][2] = 250
    start = np.zeros((2, 3), np.float32)  # the second one has no patch
    got = lloyd(LocalShards(parts, gpu=False), start, iterations=0)
    np.testing.assert_array_equal((got.centroids * 255).round(), [[0, 0, 0], [250, 250, 250]])


def test_too_many_parts_names_the_number_found() -> None:
    patches = np.tile(np.arange(6, dtype=np.uint8)[:, None], (500, 3))
    assert clustering(patches, 6, seed=0).objective == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match=r"bank.size is 7, .* only 6 different"):
        clustering(patches, 7, seed=0)


def test_rare_patches_count_where_the_sample_misses_them() -> None:
    patches = np.zeros((20_000, 4), np.uint8)
    patches[[5, 17_001]] = [[9], [200]]
    assert clustering(patches, 3, seed=0).objective == pytest.approx(0, abs=1e-9)
    assert LocalShards([patches], gpu=False).call("distinct", 2)[0].shape == (2, 4)


def test_plus_plus_tells_bright_patches_of_many_pixels_apart() -> None:
    """Their squares exceed 2^24, where float32 cannot represent every integer."""
    patches = np.full((40, 32 * 32 * 3), 250, np.uint8)
    patches[np.arange(40), np.arange(40)] = 251
    assert len(np.unique(plus_plus(patches, 30, np.random.default_rng(0)), axis=0)) == 30


def test_plus_plus_chooses_different_spread_patches(patches: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    chosen, random = plus_plus(patches, 40, rng), patches[rng.choice(len(patches), 40)]
    assert len(np.unique(chosen, axis=0)) == 40
    spread, by_chance = (_distances(patches, rows / 255.0).min(1).mean() for rows in (chosen, random))
    assert spread < by_chance


def _pairs(centroids: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy pairing over all (K, M) distances: patches and distances of the centroids."""
    distances = _distances(patches, centroids).T
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
    found, cost = _pairs(centroids, patches)
    np.testing.assert_array_equal(got.patches, patches[found])
    np.testing.assert_allclose(got.distances, cost, rtol=1e-5)
    assert len(np.unique(got.patches, axis=0)) == 25


def test_equal_centroids_get_different_patches() -> None:
    patches = np.repeat(np.arange(0, 240, 12, dtype=np.uint8)[:, None], 3, 1)
    shards = LocalShards([np.tile(patches, (10, 1))], gpu=False)
    got = snap(np.full((20, 3), 0.5, np.float32), shards)
    np.testing.assert_array_equal(np.sort(got.patches[:, 0]), patches[:, 0])


def test_sums_of_a_device_are_those_of_scipy() -> None:
    """Exact integers, so that a GPU's order of adding changes nothing. Tested on the CPU."""
    generator = np.random.default_rng(0)
    chunk = generator.integers(0, 256, (CHUNK, 25)).astype(np.float32)
    nearest = np.minimum(generator.integers(0, 7, CHUNK), 5)  # cluster 6 is empty
    exact = np.stack([chunk[nearest == part].sum(0, dtype=np.float64) for part in range(7)])
    for found in (sums(chunk, nearest, 7), sums_on(torch.device("cpu"), chunk, nearest, 7)):
        np.testing.assert_array_equal(found, exact)
