"""Nearest vectors against brute force, exact integers and FAISS; the bank is the same, bit for bit."""

import sys
from collections.abc import Callable
from unittest.mock import Mock

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from npdraw_dist.bank import search
from npdraw_dist.bank import shards as shard_file
from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.search import STEPS_PER_PIXEL_UNIT, Assigner, Searcher, quantized
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.system.errors import UserError

SETTINGS = BankConfig(size=20)


def flat(vectors: NDArray[np.float32]) -> faiss.IndexFlatL2:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return index


class Wrong:
    """An index that errs as far as the float32 bound allows: it swaps the two nearest if they are close."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self._index = flat(centroids)

    def search(self, patches: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        squared, found = self._index.search(patches, k)
        swap = squared[:, 1] - squared[:, 0] < 1
        found[swap] = found[swap, ::-1]
        return squared, found


def patches_of(seed: int, count: int, dimensions: int) -> NDArray[np.uint8]:
    """(count, dimensions): copies of prototypes, a third of them without noise, so that many are equal."""
    rng = np.random.default_rng(seed)
    prototypes = rng.integers(0, 256, (40, dimensions))
    noise = rng.normal(0, 20, (count, dimensions)) * (rng.random((count, 1)) < 0.67)
    return (prototypes[rng.integers(0, 40, count)] + noise).clip(0, 255).astype(np.uint8)


# The nearest centroid of a patch


def exact(patches: NDArray[np.uint8], centroids: NDArray[np.float32]) -> NDArray[np.object_]:
    """(n, K): squared distances as Python integers, in units of 2^-32 of a squared grey value."""
    steps = (centroids.astype(np.float64) * STEPS_PER_PIXEL_UNIT).astype(np.int64).astype(object)
    apart = patches.astype(object)[:, None] * int(STEPS_PER_PIXEL_UNIT) - steps
    return (apart**2).sum(-1)


@pytest.mark.parametrize("index", [flat, Wrong])
@pytest.mark.parametrize("dimensions", [9, 48])
def test_ties_and_near_ties(dimensions: int, index: Callable[[NDArray[np.float32]], object]) -> None:
    rng = np.random.default_rng(dimensions)
    patches = rng.integers(0, 256, (300, dimensions)).astype(np.uint8)
    centroids = patches[:12].astype(np.float64)
    centroids[3] = centroids[8]  # equal
    for pair in (4, 6):  # a patch halfway between two centroids, and then all but halfway
        centroids[pair + 1] = 2.0 * patches[pair + 100] - centroids[pair]
    centroids[7, 0] += 1e-4
    near = quantized(centroids)
    nearest, worst, distance = Assigner(near, index(near))(patches.astype(np.float32))
    squared = exact(patches, near)
    np.testing.assert_array_equal(nearest, squared.argmin(1))
    least = squared.min(1)
    assert worst == least.argmax()
    assert distance == pytest.approx(float(least.max()) / STEPS_PER_PIXEL_UNIT**2, rel=1e-12)


def test_one_centroid() -> None:
    centroids = quantized(np.full((1, 4), 10.5))
    nearest, worst, distance = Assigner(centroids, flat(centroids))(np.array([[10] * 4, [0] * 4], np.float32))
    assert nearest.tolist() == [0, 0]
    assert (worst, distance) == (1, 4 * 10.5**2)


def test_quantized_is_float32_without_loss() -> None:
    values = np.array([[0.1, 254.9999999, -20.3, 400.00001]])
    steps = quantized(values).astype(np.float64) * STEPS_PER_PIXEL_UNIT
    np.testing.assert_array_equal(steps, np.rint(steps))
    np.testing.assert_allclose(quantized(values), values, atol=2**-15)


# Search by products


@pytest.mark.parametrize(("count", "block"), [(1, 1), (8, 700), (40, search.BLOCK)])
def test_the_nearest_are_those_of_brute_force(
    count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BLOCK", block)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.random((n, 25)).astype(np.float32) for n in (60, 33))
    squared, rows = search.Products(vectors).search(queries, count)
    apart = ((queries[:, None].astype(np.float64) - vectors) ** 2).sum(-1)
    np.testing.assert_array_equal(rows, apart.argsort(1)[:, :count])
    np.testing.assert_allclose(squared, np.take_along_axis(apart, rows, 1), atol=1e-5)


def test_of_equally_near_ones_the_first_comes_first() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 8, 0)
    rows = search.Products(vectors).search(np.eye(4, dtype=np.float32)[:1], 20)[1][0]
    np.testing.assert_array_equal(rows[:8], np.arange(8))


def test_a_bank_is_the_same_as_with_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, settings = patches_of(48, 5000, 48), BankConfig(size=60)
    bank, facts = build_bank(patches, 3, settings, seed=3)
    monkeypatch.setattr(search, "Products", flat)
    of_faiss, its_facts = build_bank(patches, 3, settings, seed=3)
    assert facts == its_facts
    assert (bank.parts == of_faiss.parts).all()


def test_a_bank_needs_no_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if not installed
    assert not Searcher(None).gpu
    with pytest.raises(UserError, match=r"npdraw_dist\[gpu\]"):
        Searcher(True)
    assert build_bank(patches_of(0, 500, 25), 1, BankConfig(size=5), seed=0, gpu=None)[1].k == 5


def test_a_product_takes_one_thread_meanwhile() -> None:
    def threads() -> list[int]:
        infos = search._libraries().info()
        return [info["num_threads"] for info in infos if info["user_api"] == "blas"]

    before = threads()
    assert before
    with search.one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before


# FAISS on a GPU, in place of which stands an index on the CPU


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Records the calls of FAISS on a machine that seems to have a GPU."""
    found = Mock()
    found.get_num_gpus.return_value = 1
    found.GpuIndexFlatL2.side_effect = lambda resources, dimensions: faiss.IndexFlatL2(dimensions)
    for name in ("get_num_gpus", "StandardGpuResources", "GpuIndexFlatL2"):
        monkeypatch.setattr(faiss, name, getattr(found, name), raising=False)
    return found


def test_a_clustering_makes_one_index(pretended: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One index serves all steps, chunks and the search of exemplars, with the result of the CPU."""
    monkeypatch.setattr(shard_file, "CHUNK", 1000)
    patches = patches_of(1, 6000, 12)
    on_cpu, facts = build_bank(patches, 3, SETTINGS, seed=0)
    assert pretended.mock_calls == []  # so no context of a GPU is left in a process without
    on_gpu, same_facts = build_bank(patches, 3, SETTINGS, seed=0, gpu=True)
    for call in (pretended.get_num_gpus, pretended.StandardGpuResources, pretended.GpuIndexFlatL2):
        call.assert_called_once()
    (size,) = pretended.StandardGpuResources().setTempMemory.call_args.args
    assert 0 < size <= 2**30
    assert same_facts == facts
    assert (on_gpu.parts == on_cpu.parts).all()


@pytest.mark.parametrize(("wanted", "found", "gpu"), [(None, 1, True), (None, 0, False), (False, 1, False)])
def test_a_gpu_is_used_if_it_is_found_and_must_be_there_if_it_is_wanted(
    pretended: Mock, wanted: bool | None, found: int, gpu: bool
) -> None:
    pretended.get_num_gpus.return_value = found
    assert Searcher(wanted).gpu == gpu
    assert pretended.StandardGpuResources.called == gpu
    pretended.get_num_gpus.return_value = 0
    with pytest.raises(UserError, match=r"scale\.use_gpu"):
        build_bank(patches_of(1, 100, 12), 3, SETTINGS, seed=0, gpu=True)


@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="FAISS finds no GPU")
def test_a_gpu_gives_the_result_of_the_cpu() -> None:
    patches = patches_of(1, 6000, 12)
    on_cpu, facts = build_bank(patches, 3, SETTINGS, seed=0)
    on_gpu, same_facts = build_bank(patches, 3, SETTINGS, seed=0, gpu=True)
    assert same_facts == facts
    assert (on_gpu.parts == on_cpu.parts).all()
