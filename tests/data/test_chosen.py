"""The test images of the last table: a seeded choice that reads few rows."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.chosen import read_chosen
from npdraw_dist.data.parses import write_parses
from npdraw_dist.data.stream import list_shards

COUNT = 300
LOCAL = fs.LocalFileSystem()


def write(folder: Path, order: np.ndarray, rows: int) -> None:
    """Image n is full of n % 256 and n // 256, its parse starts with place n."""
    for part, start in enumerate(range(0, COUNT, rows)):
        numbers = order[start : start + rows]
        images = np.zeros((len(numbers), 1, 4, 4), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = (numbers % 256)[:, None], (numbers // 256)[:, None]
        where = torch.from_numpy(np.stack([numbers, numbers], 1))
        z = PartSequence(torch.ones_like(where, dtype=torch.bool), where, where % 7)
        ids = [f"r{n:03d}" for n in numbers]
        write_parses(f"{folder}/{part:03d}.parquet", LOCAL, ids, images, None, z, np.zeros(len(ids)))  # type: ignore[arg-type]


def test_the_choice_is_of_the_ids_not_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.parses.ROW_GROUP", 16)  # several groups a shard
    write(tmp_path / "a", np.arange(COUNT), 100)
    write(tmp_path / "b", np.random.default_rng(0).permutation(COUNT), 37)
    assert pq.read_metadata(tmp_path / "a" / "000.parquet").num_row_groups > 1
    # The ids in order, one permutation by PyTorch of the seed: as all versions chose.
    expected = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))[:40]
    for folder in ("a", "b"):
        got = read_chosen(list_shards(LOCAL, str(tmp_path / folder)), LOCAL, 40, seed=3)
        assert torch.equal(got.z.where[:, 0], expected)
        assert torch.equal(got.images[:, 0, 0, 0] + 256 * got.images[:, 0, 1, 0].long(), expected)


def test_all_images_where_there_are_no_more(tmp_path: Path) -> None:
    write(tmp_path, np.arange(COUNT), 100)
    got = read_chosen(list_shards(LOCAL, str(tmp_path)), LOCAL, 10**6, seed=0)
    assert sorted(got.z.where[:, 0].tolist()) == list(range(COUNT))


def test_only_the_row_groups_of_the_choice_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.parses.ROW_GROUP", 10)
    write(tmp_path, np.arange(COUNT), 100)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def count(self: pq.ParquetFile, group: int, columns: list[str]) -> object:
        read.append(group)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    read_chosen(list_shards(LOCAL, str(tmp_path)), LOCAL, 2, seed=0)
    assert 1 <= len(read) <= 2
