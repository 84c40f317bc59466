"""What a bench measures on: images of many shards, so that a sorted set is not taken for its first shards."""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from npdraw_dist.bench import workload
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import FilePart, FileShard
from npdraw_dist.data.splits import Split


@dataclass
class OneClass:
    """Reads a shard of `rows` images of the pixel `value`; the first of a file takes 50 ms more."""

    value: int
    rows: int
    reads: list[int]
    file: str

    def __call__(self, split: Split) -> Rows:
        if self.file not in {str(value // 10) for value in self.reads}:
            time.sleep(0.05)
        self.reads.append(self.value)
        images = np.full((self.rows, 1, 28, 28), self.value, np.uint8)
        return Rows([str(i) for i in range(self.rows)], images, np.zeros(self.rows, np.int64))


def opened(monkeypatch: pytest.MonkeyPatch, shards: int, rows: int) -> tuple[workload.Workload, list[int]]:
    """Files of ten shards, and the order in which these were read."""
    reads: list[int] = []
    parts = [
        FilePart(str(i // 10), ("train",), OneClass(i, rows, reads, str(i // 10)), rows)
        for i in range(shards)
    ]
    found = [FileShard(f"train-{number:05d}", "train", part) for number, part in enumerate(parts)]
    source = SimpleNamespace(shards=lambda split: found)
    monkeypatch.setattr(workload, "open_source", lambda data, seed: source)
    return workload.open_workload(Experiment(), quick=True), reads


def test_the_first_images_are_of_many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    work, reads = opened(monkeypatch, 200, 500)
    assert len(reads) == 2 * len(set(reads)) == 2 * workload.LEAST_SHARDS  # the second time is measured
    assert reads == sorted(reads)  # as a worker reads them
    assert max(reads) > 100  # not the first ones
    assert work.images.shape == (workload.QUICK_IMAGES, 1, 28, 28)
    assert len(np.unique(work.images[:400, 0, 0, 0])) == workload.LEAST_SHARDS
    again, _ = opened(monkeypatch, 200, 500)
    np.testing.assert_array_equal(again.images, work.images)


def test_what_a_file_takes_once_is_shared_by_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    work, _ = opened(monkeypatch, 200, 500)
    assert work.reading.shards == 10
    assert work.reading.once_s == pytest.approx(0.05 / 5000, rel=0.5)
    assert 0 < work.reading.seconds < 0.05 / 500


def test_small_shards_are_read_until_there_are_enough_images(monkeypatch: pytest.MonkeyPatch) -> None:
    work, reads = opened(monkeypatch, 200, 50)
    assert len(set(reads)) == workload.QUICK_IMAGES // 50
    assert len(reads) == len(set(reads)) + workload.LEAST_SHARDS
    work, reads = opened(monkeypatch, 3, 700)
    assert reads == [0, 0, 1, 1, 2, 2]
    assert len(work.images) == 2100


def test_a_source_that_lists_its_images_does_nothing_once_for_a_file() -> None:
    work = workload.open_workload(Experiment(), quick=True)  # the digits
    assert work.reading.once_s == 0
    assert work.reading.shards == 1
    assert work.reading.seconds > 0
