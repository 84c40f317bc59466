"""The reader of parses gives exactly the rows asked for, in their order, and decodes no others."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data import parses as module
from npdraw_dist.data.parses import (
    READ_ROWS,
    ROW_GROUP,
    Parses,
    RowGroups,
    RowRange,
    read_range,
    to_batch,
    to_parquet,
    write_list,
)
from npdraw_dist.data.rows import Rows
from npdraw_dist.training.failures import storage_failed
from tests.helpers.rows import open_parses, stream

LOCAL = fs.LocalFileSystem()
ROWS = (700, 5000, 3, 1024, 2100)  # 5000 is two reads, 2100 is three row groups
STARTS = np.cumsum([0, *ROWS])
COUNT = 300  # images of the tests of samples


@pytest.fixture(scope="module")
def parses(tmp_path_factory: pytest.TempPathFactory) -> Parses:
    """Shards whose parses and pixels carry the row's number."""
    folder = tmp_path_factory.mktemp("parses")
    for number, count in enumerate(ROWS):
        row = torch.arange(count) + int(STARTS[number])
        z = PartSequence(
            torch.ones(count, 2, dtype=torch.bool),
            row[:, None] % 7 + torch.zeros(2).long(),
            row[:, None].expand(-1, 2),
        )
        images = (row % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).numpy()
        ids = [f"x-{i}" for i in row.tolist()]
        path = str(folder / f"train-{number:05d}.parquet")
        write_bytes(LOCAL, path, to_parquet(Rows(ids, images), z, np.zeros(count, np.float32)))
    (folder / "manifest.json").write_text("{}")
    return open_parses(LOCAL, str(folder))


def numbers(order: list[int]) -> np.ndarray:
    """The row numbers of files one after another."""
    return np.concatenate([np.arange(STARTS[i], STARTS[i + 1]) for i in order])


def test_shards_are_listed_with_their_rows(parses: Parses, tmp_path: Path) -> None:
    assert [file.rows for file in parses.files] == list(ROWS)
    assert len(parses) == sum(ROWS)
    assert [Path(file.path).name for file in parses.files] == [
        f"train-{i:05d}.parquet" for i in range(len(ROWS))
    ]
    missing = open_parses(LOCAL, str(tmp_path / "missing"))
    assert len(missing) == 0
    with pytest.raises(UserError, match="no image"):
        missing.in_id_order()


def select(parses: Parses, order: list[int]) -> Parses:
    """The files in the given order."""
    return Parses(parses.filesystem, tuple(parses.files[index] for index in order))


def test_only_the_row_groups_of_the_range_are_decoded(
    parses: Parses, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    class Spy(module.pq.ParquetFile):
        def read_row_groups(self, groups: list[int], **options: object) -> pa.Table:
            asked.append(groups)
            return super().read_row_groups(groups, **options)

    monkeypatch.setattr(module.pq, "ParquetFile", Spy)
    for start, stop, groups in [(512, 1024, [2, 3]), (1000, 1025, [3, 4]), (2048, 2100, [8]), (5, 9, [0])]:
        table = read_range(RowRange(parses.files[4].path, start, stop), LOCAL, module.COLUMNS)
        found = to_batch(table)
        assert found.z.what[:, 0].tolist() == (STARTS[4] + np.arange(start, stop)).tolist()
        assert asked.pop() == groups


@pytest.mark.parametrize(("start", "stop"), [(0, 8827), (650, 760), (5699, 5704), (8826, 8827)])
def test_rows_read_at_once_are_in_order(parses: Parses, start: int, stop: int) -> None:
    found = select(parses, [4, 0, 3, 1, 2]).at(np.arange(start, stop))
    want = numbers([4, 0, 3, 1, 2])[start:stop]
    assert found.what[:, 0].tolist() == want.tolist()
    assert found.images[:, 0, 0, 0].tolist() == (want % 256).tolist()


def in_order(groups: RowGroups, order: np.ndarray) -> np.ndarray:
    """The row numbers of groups one after another."""
    first = STARTS[groups.file] + groups.start
    return np.concatenate([np.arange(first[i], first[i] + groups.rows[i]) for i in order])


def test_rows_are_cut_into_groups_of_one_file(parses: Parses) -> None:
    groups = parses.groups
    assert groups.rows.sum() == len(parses)
    assert groups.rows.max() == ROW_GROUP
    assert in_order(groups, np.arange(len(groups.rows))).tolist() == list(range(len(parses)))
    assert len(Parses(LOCAL, ()).groups.rows) == 0


def test_groups_are_streamed_in_any_order_some_at_a_time(
    parses: Parses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npdraw_dist.data.parses.ray_runs", lambda: False)
    groups = parses.groups
    order = np.random.default_rng(1).permutation(len(groups.rows))
    twice = np.tile(order, 2)  # a ring that is read past its end
    ranges = [(0, 4000), (8000, 8900), (5, 5), (8826, 8827)]
    found = list(parses.stream_groups(twice, ranges))
    want = np.concatenate([in_order(groups, twice)[start:stop] for start, stop in ranges])
    assert torch.cat([batch.z.what for batch in found])[:, 0].tolist() == want.tolist()
    assert len(found) == -(-len(want) // READ_ROWS)
    assert list(parses.stream_groups(order, [])) == []


@pytest.mark.ray
def test_streamed_rows_come_in_the_order_of_the_files(parses: Parses) -> None:
    from npdraw_dist.training.launch import start_ray

    start_ray(ScaleConfig(), object_store_mb=128)
    # A ring that is read past its end lists a file twice.
    for order, start, stop in [
        ([4, 0, 3, 1, 2], 0, 8827),
        ([2, 1, 0, 4, 2, 1], 4000, 9500),
        ([1], 4990, 5000),
    ]:
        batches = list(stream(select(parses, order), [(start, stop)]))
        want = numbers(order)[start:stop]
        what = torch.cat([batch.z.what for batch in batches])
        np.testing.assert_array_equal(what.numpy(), np.stack([want, want], 1))
        images = torch.cat([batch.images for batch in batches])
        assert images.shape == (len(want), 1, 2, 2)
        np.testing.assert_array_equal(images[:, 0, 1, 1].numpy(), want % 256)
        assert torch.cat([batch.z.where for batch in batches])[:, 1].tolist() == (want % 7).tolist()
        assert max(map(len, batches)) <= READ_ROWS
    ranges = [(8000, 8827), (0, 3), (5, 5), (4999, 5001)]
    joined = torch.cat([batch.z.what for batch in stream(parses, ranges)])
    want = np.concatenate([numbers([0, 1, 2, 3, 4])[start:stop] for start, stop in ranges])
    np.testing.assert_array_equal(joined[:, 0].numpy(), want)
    assert list(stream(parses, [(5, 5)])) == []
    groups = parses.groups
    mixed = np.random.default_rng(0).permutation(len(groups.rows))
    found = list(parses.stream_groups(mixed, [(100, 7000), (8000, 8827)]))
    rows = np.concatenate([in_order(groups, mixed)[100:7000], in_order(groups, mixed)[8000:]])
    assert torch.cat([batch.z.what for batch in found])[:, 0].tolist() == rows.tolist()
    assert [len(batch) <= READ_ROWS for batch in found] == [True] * len(found)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_stream_is_read_although_the_workers_hold_every_cpu(local_ray: None, parses: Parses) -> None:
    class Worker:
        def rows(self, parses: Parses) -> int:
            return sum(map(len, stream(parses, [(0, len(parses))])))

    cpus = ray.cluster_resources()["CPU"]
    worker: Any = ray.remote(num_cpus=cpus)(Worker).remote()
    assert ray.get(worker.rows.remote(parses), timeout=60) == sum(ROWS)
    ray.kill(worker)


@pytest.mark.slow
@pytest.mark.ray
def test_a_full_stream_leaves_the_core_to_its_reader(local_ray: None, parses: Parses) -> None:
    """Ray's loop ran 1,500 times a second, and made a training in the same process four times slower."""
    batches = stream(parses, [(start, start + 600) for start in range(300)])
    assert len(next(batches))
    time.sleep(2)  # it fills
    before = time.process_time()
    time.sleep(2)
    assert time.process_time() - before < 0.8, "seconds of a core, in two of rest"


@pytest.mark.slow
@pytest.mark.ray
def test_a_stream_of_more_than_the_object_store_holds(local_ray: None, tmp_path: Path) -> None:
    """Each row comes once, in order, though the reader is slow and the store is full of other objects."""
    count, side = 1 << 14, 112
    images = np.zeros((count, 1, side, side), np.uint8)  # 206 MB; the store has 128 MB
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    for start in range(0, count, 1 << 12):
        rows = slice(start, start + (1 << 12))
        content = to_parquet(Rows([f"{i:05d}" for i in range(*rows.indices(count))], images[rows]))
        write_bytes(LOCAL, str(tmp_path / f"{start:05d}.parquet"), content)
    held = [ray.put(np.full(16 << 20, number, np.uint8)) for number in range(6)]
    seen = []
    for batch in stream(open_parses(LOCAL, str(tmp_path)), [(0, count)]):
        time.sleep(0.1)
        seen += (batch.images[:, 0, 0, 0].int() * 256 + batch.images[:, 0, 0, 1]).tolist()
    assert seen == list(range(count))
    assert [int(ray.get(one)[-1]) for one in held] == list(range(6))


def write(folder: Path, order: np.ndarray, rows: int) -> Parses:
    """Image n is full of n % 256 and n // 256, its parse starts with place n."""
    for part, start in enumerate(range(0, COUNT, rows)):
        count = order[start : start + rows]
        images = np.zeros((len(count), 1, 4, 4), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = (count % 256)[:, None], (count // 256)[:, None]
        where = torch.from_numpy(np.stack([count, count], 1))
        z = PartSequence(torch.ones_like(where, dtype=torch.bool), where, where % 7)
        ids = [f"r{n:03d}" for n in count]
        content = to_parquet(Rows(ids, images), z, np.zeros(len(ids), np.float32))
        write_bytes(LOCAL, f"{folder}/{part:03d}.parquet", content)
    return open_parses(LOCAL, str(folder))


def test_all_rows_are_sorted_by_id(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    whole = write(tmp_path, order, 37).in_id_order()
    assert whole.where[:, 0].tolist() == list(range(COUNT))
    numbers = whole.images[:, 0, 0, 0] + 256 * whole.images[:, 0, 1, 0].long()
    assert numbers.tolist() == list(range(COUNT))


def test_a_sample_is_of_the_ids_not_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.parses.ROW_GROUP", 16)  # several groups a shard
    shards = [
        write(tmp_path / "a", np.arange(COUNT), 100),
        write(tmp_path / "b", np.random.default_rng(0).permutation(COUNT), 37),
    ]
    assert pq.read_metadata(tmp_path / "a" / "000.parquet").num_row_groups > 1
    # The ids in order, one permutation by PyTorch of the seed: as all versions chose.
    expected = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))[:40]
    for parses in shards:
        got = parses.sample(40, seed=3)
        assert torch.equal(got.z.where[:, 0], expected)
        assert torch.equal(got.images[:, 0, 0, 0] + 256 * got.images[:, 0, 1, 0].long(), expected)


def test_a_sample_of_more_than_all_is_all(tmp_path: Path) -> None:
    got = write(tmp_path, np.arange(COUNT), 100).sample(10**6, seed=0)
    assert sorted(got.z.where[:, 0].tolist()) == list(range(COUNT))


def test_only_the_row_groups_of_a_sample_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.parses.ROW_GROUP", 10)
    parses = write(tmp_path, np.arange(COUNT), 100)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def count(self: pq.ParquetFile, group: int, columns: list[str]) -> object:
        read.append(group)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    parses.sample(2, seed=0)
    assert 1 <= len(read) <= 2


@pytest.mark.ray
def test_a_node_that_does_not_see_a_shard_of_a_stream_is_named(local_ray: None, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = Rows(["0", "1"], np.zeros((2, 1, 4, 4), np.uint8))
    write_bytes(fs.LocalFileSystem(), str(path), to_parquet(rows))
    parses = open_parses(fs.LocalFileSystem(), str(tmp_path))
    path.unlink()
    with pytest.raises(ray.exceptions.RayError) as caught:
        list(stream(parses, [(0, 2)]))
    said = f"{path} cannot be read from {ray.util.get_node_ip_address()}, whose disk is not the shared one"
    assert said in str(storage_failed("prior", caught.value))


def numbered(folder: Path, *files: int) -> Parses:
    """Files of images whose first two pixels are the number of the row and of the file."""
    for number, count in enumerate(files):
        images = np.zeros((count, 1, 2, 2), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 251, number
        ids = [f"{number}-{row}" for row in range(count)]
        write_bytes(LOCAL, str(folder / f"train-{number:05d}.parquet"), to_parquet(Rows(ids, images)))
    return open_parses(LOCAL, str(folder))


def test_some_images_are_whole_row_groups_until_the_limit(tmp_path: Path) -> None:
    parses = numbered(tmp_path, 1500, 3, 2100)
    blocks = list(parses.images(10_000, seed=0))
    sizes = sorted(map(len, blocks))
    assert sizes == [3, 52, 220, *[256] * 13]
    whole = torch.cat(blocks)[:, 0, 0]
    assert torch.bincount(whole[:, 1].long()).tolist() == [1500, 3, 2100]
    for number, count in enumerate((1500, 3, 2100)):
        mine = whole[whole[:, 1] == number][:, 0].sort().values
        assert torch.equal(mine, (torch.arange(count) % 251).byte().sort().values)
    few = list(parses.images(1100, seed=0))
    assert sum(map(len, few)) == 1100
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(few, blocks, strict=False))
    other = torch.cat(list(parses.images(1100, seed=1)))
    assert not torch.equal(other, torch.cat(few))
    assert list(Parses(LOCAL, ()).images(5, 0)) == []


def test_at_most_so_many_files_are_chosen(tmp_path: Path) -> None:
    numbered(tmp_path, *[2] * 12)
    parses = open_parses(LOCAL, str(tmp_path))
    drawn = [parses.some(5, seed).files for seed in range(40)]
    assert all(len(files) == 5 and list(files) == sorted(files, key=lambda f: f.path) for files in drawn)
    assert drawn[0] == parses.some(5, seed=0).files
    assert len({file.path for files in drawn for file in files}) == 12
    assert parses.some(12, seed=0) == parses


def test_a_sample_of_very_many_rows_reads_the_ids_of_some_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(tmp_path, *[4] * 12)
    parses = open_parses(LOCAL, str(tmp_path))
    monkeypatch.setattr(module, "MOST_IDS", 16)
    read: list[str] = []

    class Noted(pq.ParquetFile):
        def __init__(self, path: str, **options: Any) -> None:
            super().__init__(path, **options)
            read.append(path)

    monkeypatch.setattr(module.pq, "ParquetFile", Noted)
    sample = parses.sample(6, seed=0)
    assert len(sample) == 6
    assert len(set(read)) == 4
    assert torch.equal(sample.images, parses.sample(6, seed=0).images)
    assert len(parses.sample(40, seed=0)) == 40
    several = torch.cat([parses.sample(6, seed).images.flatten(1)[:, :2] for seed in range(30)])
    assert len(several.unique(dim=0)) > 40


def test_the_list_of_the_stage_stands_for_the_files(tmp_path: Path) -> None:
    """No file is looked at, and one that is not in the list is not read."""
    numbered(tmp_path / "train", 3, 4)
    before = open_parses(LOCAL, str(tmp_path / "train"))
    with pytest.raises(UserError, match=r"files.json is damaged .* run the stage `parse` again"):
        Parses.of_split(LOCAL, str(tmp_path), "train")
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    write_list(LOCAL, str(tmp_path), {"train": {f"train/{names[1]}": 4}, "valid": {}})
    found = Parses.of_split(LOCAL, str(tmp_path), "train")
    assert [(Path(file.path).name, file.rows) for file in found.files] == [(names[1], 4)]
    assert torch.equal(found.at(np.arange(4)).images, before.at(np.arange(3, 7)).images)
    assert len(Parses.of_split(LOCAL, str(tmp_path), "valid")) == 0
    assert len(Parses.of_split(LOCAL, str(tmp_path), "test")) == 0
    (tmp_path / "train" / names[1]).unlink()
    with pytest.raises(UserError, match="run the stage `parse` again"):
        found.at(np.arange(4))
    (tmp_path / "files.json").write_text("{")
    with pytest.raises(UserError, match=r"files.json is damaged"):
        Parses.of_split(LOCAL, str(tmp_path), "train")
