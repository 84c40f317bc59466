"""Sharded = single: clustering, snapping, the bank."""

import os
import signal
from contextlib import closing

import numpy as np
import pytest
import ray
import torch

from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.kmeans import kmeans, lloyd, snap
from npdraw_dist.bank.shards import LocalShards, RayShards
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.errors import UserError

SETTINGS = BankConfig(size=20)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """(6000, 12) uint8: noisy copies of 30 prototypes."""
    rng = np.random.default_rng(1)
    prototypes = rng.integers(0, 256, (30, 12))
    noisy = prototypes[rng.integers(0, 30, 6000)] + rng.normal(0, 25, (6000, 12))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("cuts", [[3100], [10, 10, 4000]])
def test_any_split_gives_the_single_result(patches: np.ndarray, cuts: list[int]) -> None:
    one, shards = LocalShards([patches], gpu=False), LocalShards(np.split(patches, cuts), gpu=False)
    single = kmeans(one, 20, seed=7)
    got = kmeans(shards, 20, seed=7)
    np.testing.assert_array_equal(got.centroids, single.centroids)
    assert got.history == single.history
    np.testing.assert_array_equal(got.sizes, single.sizes)
    expected, found = snap(single.centroids, one), snap(got.centroids, shards)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.patches, expected.patches)


def test_the_split_does_not_reach_the_rounding_of_faiss() -> None:
    # Shards on both sides of the size at which FAISS 1.15 changes its path, and patches near two centroids.
    rng = np.random.default_rng(3)
    patches = rng.integers(0, 256, (20_000, 25)).astype(np.uint8)
    patches[rng.random(patches.shape) < 0.4] = 0
    patches = patches[rng.integers(0, 5000, 40_000)]
    patches[rng.random(len(patches)) < 0.1] = 0
    start = patches[rng.choice(len(patches), 50, replace=False)].astype(np.float32) / np.float32(255)
    single = lloyd(LocalShards([patches], gpu=False), start, 10)
    for parts in (2, 4, 19):
        got = lloyd(LocalShards(np.array_split(patches, parts), gpu=False), start, 10)
        np.testing.assert_array_equal(got.centroids, single.centroids)
        np.testing.assert_array_equal(got.sizes, single.sizes)
        assert got.history == single.history


def test_bank_is_sorted_by_use_and_made_of_real_patches(patches: np.ndarray) -> None:
    bank, facts = build_bank(patches, 3, SETTINGS, seed=0)
    assert bank.parts.shape == (20, 3, 2, 2)
    real = {row.tobytes() for row in patches}
    assert {row.tobytes() for row in (bank.parts.reshape(20, -1) * 255).round().byte().numpy()} <= real
    assert (facts.k, facts.patches) == (20, 6000)
    assert facts.cluster_sizes == sorted(facts.cluster_sizes, reverse=True)
    # Each part stands for about as many patches as its cluster has: sizes and parts are in one order.
    apart = torch.cdist(torch.from_numpy(patches).float() / 255, bank.parts.reshape(20, -1))
    used = torch.bincount(apart.argmin(1), minlength=20)
    assert np.corrcoef(used, facts.cluster_sizes)[0, 1] > 0.9
    assert facts.objective <= apart.min(1).values.square().mean() <= 2.2 * facts.objective
    assert 0 < facts.exemplar_distance < facts.objective


def test_no_patch_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"bank\.min_energy"):
        build_bank(np.empty((0, 0), np.uint8), 1, SETTINGS, seed=0)


@pytest.mark.ray
def test_ray_actors_give_the_single_result(local_ray: None, patches: np.ndarray) -> None:
    single = kmeans(LocalShards([patches], gpu=False), 20, seed=7)
    first, second = np.split(patches, [2500])
    with closing(RayShards([first, second], gpu=False)) as shards:
        process = ray.get(shards._actors[0].__ray_call__.remote(lambda _: os.getpid()))
        os.kill(process, signal.SIGKILL)  # Ray starts it again
        got = kmeans(shards, 20, seed=7)
    np.testing.assert_array_equal(got.centroids, single.centroids)
    np.testing.assert_array_equal(got.sizes, single.sizes)
    one, facts = build_bank(patches, 3, SETTINGS, seed=7)
    two, sharded_facts = build_bank(patches, 3, SETTINGS.model_copy(update={"shards": 2}), seed=7)
    assert torch.equal(one.parts, two.parts)
    assert sharded_facts.cluster_sizes == facts.cluster_sizes
    assert sharded_facts.actor_core_seconds > facts.actor_core_seconds == 0
    assert sharded_facts.objective == pytest.approx(facts.objective, rel=1e-9)
