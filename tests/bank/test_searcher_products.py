"""Search by products against brute force in float64, and against FAISS: the same bank, bit for bit."""

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npdraw_dist.bank import search
from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.search import Products, Searcher, one_blas_thread
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.errors import UserError


def patches_of(rng: np.random.Generator, count: int, dimensions: int) -> NDArray[np.uint8]:
    """(count, dimensions): copies of prototypes, a third of them without noise, so that many are equal."""
    prototypes = rng.integers(0, 256, (40, dimensions))
    noise = rng.normal(0, 20, (count, dimensions)) * (rng.random((count, 1)) < 0.67)
    return (prototypes[rng.integers(0, 40, count)] + noise).clip(0, 255).astype(np.uint8)


class WithFaiss(Searcher):
    """A searcher whose index is FAISS's for the CPU."""

    def index(self, vectors: NDArray[np.float32]) -> Any:
        faiss = pytest.importorskip("faiss")
        found = faiss.IndexFlatL2(vectors.shape[1])
        found.add(vectors)
        return found


@pytest.mark.parametrize("count", [1, 2, 8, 40])
@pytest.mark.parametrize("block", [1, 700, search.BLOCK])
def test_the_nearest_are_those_of_brute_force(
    count: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BLOCK", block)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.random((n, 25)).astype(np.float32) for n in (60, 33))
    squared, rows = Products(vectors).search(queries, count)
    exact = ((queries[:, None].astype(np.float64) - vectors) ** 2).sum(-1)
    np.testing.assert_array_equal(rows, exact.argsort(1)[:, :count])
    np.testing.assert_allclose(squared, np.take_along_axis(exact, rows, 1), atol=1e-5)
    assert (rows.dtype, squared.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("count", [3, 20])
def test_of_equally_near_ones_the_first_comes_first(count: int) -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 8, 0)
    rows = Products(vectors).search(np.eye(4, dtype=np.float32)[:1], count)[1][0]
    np.testing.assert_array_equal(rows[: min(count, 8)], np.arange(min(count, 8)))


@pytest.mark.parametrize(("dimensions", "channels", "k"), [(25, 1, 50), (48, 3, 120)])
def test_a_bank_is_the_same_as_with_faiss(
    dimensions: int, channels: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = patches_of(np.random.default_rng(dimensions), 9000, dimensions)
    settings = BankConfig(size=k)
    bank, facts = build_bank(patches, channels, settings, seed=3)
    monkeypatch.setattr("npdraw_dist.bank.shards.Searcher", WithFaiss)
    of_faiss, its_facts = build_bank(patches, channels, settings, seed=3)
    assert facts == its_facts
    assert (bank.parts == of_faiss.parts).all()


def test_a_bank_needs_no_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if not installed
    assert not search.has_gpu()
    assert not Searcher(None).gpu
    with pytest.raises(UserError, match=r"pip install 'npdraw_dist\[gpu\]'"):
        Searcher(True)
    patches = patches_of(np.random.default_rng(0), 500, 25)
    assert build_bank(patches, 1, BankConfig(size=5), seed=0, gpu=None)[1].k == 5


def test_a_product_takes_one_thread_meanwhile() -> None:
    def threads() -> list[int]:
        infos = search._libraries().info()
        return [info["num_threads"] for info in infos if info["user_api"] == "blas"]

    before = threads()
    assert before
    with one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before
