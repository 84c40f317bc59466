"""FAISS on a GPU, in place of which stands an index on the CPU: what is made of it, and how often."""

from collections import Counter
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from npdraw_dist.bank import shards as shard_file
from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.search import Searcher
from npdraw_dist.config.schema import BankConfig
from npdraw_dist.core.errors import UserError

SETTINGS = BankConfig(size=20)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often FAISS is asked for each thing of a GPU, on a machine that seems to have one."""
    found: Counter[str] = Counter()

    class Resources:
        def __init__(self) -> None:
            found["resources"] += 1

        def setTempMemory(self, size: int) -> None:  # FAISS's name
            assert 0 < size <= 2**30

    class Index:
        def __init__(self, resources: Resources, dimensions: int) -> None:
            assert isinstance(resources, Resources)
            found["index"] += 1
            self.d, self._index = dimensions, faiss.IndexFlatL2(dimensions)

        def reset(self) -> None:
            self._index.reset()

        def add(self, vectors: NDArray[np.float32]) -> None:
            found["add"] += 1
            self._index.add(vectors)

        def search(self, queries: NDArray[np.float32], k: int) -> Any:
            return self._index.search(queries, k)

    def of_all_gpus(index: Any) -> Any:
        found["resources"] += 1
        found["index"] += 1
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatL2", Index, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", of_all_gpus, raising=False)
    return found


@pytest.fixture(scope="module")
def patches() -> NDArray[np.uint8]:
    """(6000, 12): noisy copies of 30 prototypes."""
    rng = np.random.default_rng(1)
    prototypes = rng.integers(0, 256, (30, 12))
    noisy = prototypes[rng.integers(0, 30, 6000)] + rng.normal(0, 25, (6000, 12))
    return noisy.clip(0, 255).astype(np.uint8)


def test_a_clustering_makes_one_index(
    patches: NDArray[np.uint8], calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all steps, restarts, chunks and the search of exemplars, with the result of the CPU."""
    monkeypatch.setattr(shard_file, "CHUNK", 1000)
    on_cpu, facts = build_bank(patches, 3, SETTINGS, seed=0)
    assert calls == Counter()
    on_gpu, same_facts = build_bank(patches, 3, SETTINGS, seed=0, gpu=True)
    assert (calls["resources"], calls["index"]) == (1, 1)
    assert calls["add"] > 6  # of each step, and of six chunks
    assert same_facts == facts
    assert (on_gpu.parts == on_cpu.parts).all()


def test_the_cpu_asks_nothing_of_a_gpu(
    patches: NDArray[np.uint8], calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no context of a GPU is left in a process that only clusters on its CPU."""

    def asked() -> int:
        raise AssertionError("FAISS was asked for GPUs")

    monkeypatch.setattr(faiss, "get_num_gpus", asked)
    build_bank(patches, 3, SETTINGS, seed=0, gpu=False)
    assert calls == Counter()


@pytest.mark.parametrize(("wanted", "found", "gpu"), [(None, 1, True), (None, 0, False), (True, 1, True)])
def test_a_gpu_is_used_if_it_is_found(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch, wanted: bool | None, found: int, gpu: bool
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: found)
    assert Searcher(wanted).gpu == gpu
    assert calls["resources"] == gpu


def test_a_gpu_that_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(UserError, match=r"FAISS finds no GPU here; set scale\.use_gpu to false"):
        Searcher(True)


@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="FAISS finds no GPU")
def test_a_gpu_gives_the_result_of_the_cpu(patches: NDArray[np.uint8]) -> None:
    on_cpu, facts = build_bank(patches, 3, SETTINGS, seed=0)
    on_gpu, same_facts = build_bank(patches, 3, SETTINGS, seed=0, gpu=True)
    assert same_facts == facts
    assert (on_gpu.parts == on_cpu.parts).all()
