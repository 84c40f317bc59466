"""What a bench measures on: images of many shards, so that a sorted set is not taken for its first shards."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from npdraw_dist.bench import workload
from npdraw_dist.bench.workload import Workload, median_seconds
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data.rows import Rows


@dataclass
class OneClass:
    """A shard of `rows` images of the pixel `value`."""

    value: int
    rows: int
    reads: list[int]

    def read(self) -> Rows:
        self.reads.append(self.value)
        images = np.full((self.rows, 1, 28, 28), self.value, np.uint8)
        return Rows([str(i) for i in range(self.rows)], images, np.zeros(self.rows, np.int64))


def opened(monkeypatch: pytest.MonkeyPatch, shards: int, rows: int) -> tuple[Workload, list[int]]:
    """The workload, and the order in which the shards were read."""
    reads: list[int] = []
    found = [OneClass(value, rows, reads) for value in range(shards)]
    source = SimpleNamespace(shards=lambda split: found)
    monkeypatch.setattr(workload, "open_source", lambda data, seed: source)
    return workload.open_workload(Experiment(), quick=True), reads


def test_the_first_images_are_of_many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    work, reads = opened(monkeypatch, 200, 500)
    assert len(reads) == workload.LEAST_SHARDS
    assert reads == sorted(reads)  # as a worker reads them
    assert max(reads) > 100  # not the first ones
    assert work.images.shape == (workload.QUICK_IMAGES, 1, 28, 28)
    assert work.read_s > 0
    assert len(np.unique(work.images[:400, 0, 0, 0])) == workload.LEAST_SHARDS
    again, _ = opened(monkeypatch, 200, 500)
    np.testing.assert_array_equal(again.images, work.images)


def test_small_shards_are_read_until_there_are_enough_images(monkeypatch: pytest.MonkeyPatch) -> None:
    _, reads = opened(monkeypatch, 200, 50)
    assert len(reads) == len(set(reads)) == workload.QUICK_IMAGES // 50
    work, reads = opened(monkeypatch, 3, 700)
    assert reads == [0, 1, 2]
    assert len(work.images) == 2100


def test_times_are_medians_in_turns() -> None:
    calls: list[str] = []
    found = median_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert all(0 <= seconds < 1 for seconds in found)
