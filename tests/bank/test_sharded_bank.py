"""Clustering, snapping and the bank are the same with and without shards; a kept bank."""

import os
import signal
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import ray
import torch

from npdraw_dist.bank.build import build_bank, keep_bank, nearest_parts
from npdraw_dist.bank.kmeans import kmeans, snap
from npdraw_dist.bank.shards import LocalShards, PatchShard, arguments_of
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.parts import PartBank
from npdraw_dist.distributed.actors import Actors
from npdraw_dist.system.errors import UserError

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
    np.testing.assert_array_equal(found.patches, expected.patches)


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


# A bank on new images: its parts stay, and new ones are where it fits badly

RNG = np.random.default_rng(0)
OLD = RNG.integers(0, 2, (5, 16), dtype=np.uint8) * 255
NEW = RNG.integers(0, 256, (3, 16), dtype=np.uint8)
BANK = PartBank(torch.from_numpy(OLD).float().div(255).view(5, 1, 4, 4))
PATCHES = np.concatenate([OLD.repeat(40, 0), NEW.repeat(10, 0)])[RNG.permutation(230)]


def test_the_nearest_part_is_that_of_brute_force() -> None:
    x = RNG.integers(0, 256, (50, 16), dtype=np.uint8)
    apart = ((x[:, None] / 255 - OLD / 255) ** 2).sum(2)
    nearest, distance = nearest_parts(BANK, x)
    np.testing.assert_array_equal(nearest, apart.argmin(1))
    np.testing.assert_allclose(distance, apart.min(1), rtol=1e-5)
    assert (nearest_parts(BANK, OLD)[1] == 0).all()


def test_a_kept_bank_says_how_well_it_fits() -> None:
    facts = keep_bank(BANK, PATCHES)
    apart = ((NEW[:, None] / 255 - OLD / 255) ** 2).sum(2).min(1)
    assert facts.objective == pytest.approx(10 * apart.sum() / 230, rel=1e-5)
    assert sum(facts.cluster_sizes) == facts.patches == 230


def test_no_patch_at_all_is_refused() -> None:
    for make in (partial(keep_bank, BANK), partial(build_bank, channels=1, settings=SETTINGS, seed=0)):
        with pytest.raises(UserError, match=r"bank\.min_energy"):
            make(PATCHES[:0])


@pytest.mark.ray
def test_ray_actors_give_the_single_result(local_ray: None, patches: np.ndarray) -> None:
    single = kmeans(LocalShards([patches], gpu=False), 20, seed=7)
    first, second = np.split(patches, [2500])
    with closing(Actors(PatchShard, arguments_of([first, second], False), gpu=False)) as shards:
        process = ray.get(shards._actors[0].__ray_call__.remote(lambda _: os.getpid()))
        os.kill(process, signal.SIGKILL)  # Ray starts it again
        got = kmeans(shards, 20, seed=7)
    np.testing.assert_array_equal(got.centroids, single.centroids)
    np.testing.assert_array_equal(got.sizes, single.sizes)
    one, facts = build_bank(patches, 3, SETTINGS, seed=7)
    shared = SETTINGS.model_copy(update={"shards": 2})
    two, sharded_facts = build_bank(patches, 3, shared, seed=7, others=Actors)
    assert torch.equal(one.parts, two.parts)
    assert sharded_facts.cluster_sizes == facts.cluster_sizes
    assert sharded_facts.actor_core_seconds > facts.actor_core_seconds == 0
    assert sharded_facts.objective == pytest.approx(facts.objective, rel=1e-9)
