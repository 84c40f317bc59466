"""Parses on disk: what is written is read back, exactly the rows asked for, and no others are decoded."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data import parses as module
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.parses import (
    READ_BYTES,
    Parses,
    RowGroups,
    RowRange,
    Told,
    read_range,
    to_batch,
    write_list,
)
from npdraw_dist.data.rows import Rows
from tests.helpers.counting import Counting
from tests.helpers.rows import numbered, numbers_of, open_parses
from tests.helpers.tiny_models import same

N, T = 2500, 6
LOCAL = fs.LocalFileSystem()
STARTS = np.cumsum([0, 700, 5000, 3, 1024, 2100])  # 5000 is two reads, 2100 is many row groups
COUNT = 300  # images of the tests of samples


def sample(count: int = N, parts: int = 50) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "ids": [f"x-{i}" for i in range(count)],
        "images": torch.randint(0, 256, (count, 3, 4, 5), generator=generator).to(torch.uint8).numpy(),
        "labels": np.arange(count, dtype=np.int64) % 10,
        "z": PartSequence(
            torch.rand(count, T, generator=generator) < 0.5,
            torch.randint(0, 36, (count, T), generator=generator),
            torch.randint(0, parts, (count, T), generator=generator),
        ),
        "squared_error": np.linspace(0, 1, count, dtype=np.float32),
    }


def write(path: Path, made: dict[str, Any]) -> None:
    rows = Rows(made["ids"], made["images"], made["labels"])
    write_bytes(LOCAL, str(path), to_parquet(rows, made["z"], made["squared_error"]))


@pytest.mark.parametrize("parts", [50, 100_000])
def test_round_trip(tmp_path: Path, parts: int) -> None:
    made = sample(parts=parts)
    write(tmp_path / "a.parquet", made)
    found = open_parses(LOCAL, str(tmp_path)).at(np.arange(N))
    np.testing.assert_array_equal(found.images.numpy(), made["images"])
    assert same(found.z, made["z"].canonical())
    # A batch keeps the types of the disk.
    assert found.where.dtype == torch.int16
    assert found.what.dtype == (torch.int16 if parts < 2**15 else torch.int32)
    # Plain pyarrow reads it too.
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["id", "image", "label", "whether", "where", "what", "squared_error"]
    assert table["id"].to_pylist() == made["ids"]
    assert table["whether"].to_pylist() == made["z"].whether.tolist()
    np.testing.assert_array_equal(table["label"].to_numpy(), made["labels"])
    np.testing.assert_array_equal(table["squared_error"].to_numpy(), made["squared_error"])
    np.testing.assert_array_equal(table["image"].combine_chunks().to_numpy_ndarray(), made["images"])
    batch = to_batch(table.slice(2, 3))
    np.testing.assert_array_equal(batch.images.numpy(), made["images"][2:5])
    assert same(batch.z, made["z"].canonical()[2:5])


def test_shards_of_different_types_are_read_together(tmp_path: Path) -> None:
    few, many = sample(5, parts=50), sample(5, parts=100_000)
    write(tmp_path / "a.parquet", few)
    write(tmp_path / "b.parquet", many)
    found = open_parses(LOCAL, str(tmp_path)).at(np.arange(10))
    assert same(found.z, PartSequence.cat([few["z"], many["z"]]).canonical())


def test_no_labels_no_rows_and_no_steps(tmp_path: Path) -> None:
    path, made = tmp_path / "a.parquet", sample(3)
    write(path, {**made, "labels": None})
    assert pq.read_table(path)["label"].to_pylist() == [-1, -1, -1]
    write(path, sample(0))
    batch = to_batch(pq.read_table(path))
    assert (batch.images.shape, batch.whether.shape) == ((0, 3, 4, 5), (0, T))
    write(path, {**made, "z": None})
    batch = open_parses(LOCAL, str(tmp_path)).in_id_order()
    np.testing.assert_array_equal(batch.images.numpy(), made["images"])
    assert batch.whether.shape == (3, 0)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, sample(20))
    parses = open_parses(LOCAL, str(tmp_path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"a\.parquet .* run the stage `parse` again"):
        parses.at(np.arange(20))
    with pytest.raises(UserError, match="no image"):
        open_parses(LOCAL, str(tmp_path / "missing")).in_id_order()


@pytest.fixture(scope="module")
def parses(tmp_path_factory: pytest.TempPathFactory) -> Parses:
    folder = tmp_path_factory.mktemp("parses")
    return numbered(folder, [range(*ends) for ends in pairwise(STARTS)])


def test_only_the_row_groups_of_the_range_are_decoded(
    parses: Parses, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    original = pq.ParquetFile.read_row_groups

    def noted(self: pq.ParquetFile, groups: list[int], **options: Any) -> Any:
        asked.append(groups)
        return original(self, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    for start, stop, groups in [(512, 1024, [2, 3]), (1000, 1025, [3, 4]), (2048, 2100, [8]), (5, 9, [0])]:
        table = read_range(RowRange(parses.files[4].path, start, stop), LOCAL)
        assert numbers_of([to_batch(table)]) == list(range(STARTS[4] + start, STARTS[4] + stop))
        assert asked.pop() == groups


def test_rows_come_in_the_order_that_is_asked(parses: Parses) -> None:
    assert len(parses) == STARTS[-1]
    for rows in (range(650, 760), range(5699, 5704), [8826, 0, 5000, 4999, 700, 0, 1023, 1024]):
        assert numbers_of([parses.at(np.array(rows))]) == list(rows)
    others = Parses(LOCAL, tuple(parses.files[index] for index in (4, 0, 3)))
    assert numbers_of([others.at(np.arange(2000, 3000))]) == [
        *range(8727, 8827),
        *range(700),
        *range(5703, 5903),
    ]


def in_order(groups: RowGroups, order: np.ndarray) -> np.ndarray:
    """The row numbers of groups one after another."""
    first = STARTS[groups.file] + groups.start
    return np.concatenate([np.arange(first[i], first[i] + groups.rows[i]) for i in order])


def test_groups_of_one_file_are_streamed_in_any_order_some_at_a_time(parses: Parses) -> None:
    groups = parses.groups(READ_BYTES // 256)
    assert groups.rows.max() == 256
    assert in_order(groups, np.arange(len(groups.rows))).tolist() == list(range(len(parses)))
    assert len(Parses(LOCAL, ()).groups(1).rows) == 0
    order = np.random.default_rng(1).permutation(len(groups.rows))
    twice = np.tile(order, 2)  # a ring that is read past its end
    ranges = [(0, 4000), (8000, 8900), (5, 5), (8826, 8827)]
    found = list(parses.stream(groups, twice, ranges))
    want = np.concatenate([in_order(groups, twice)[start:stop] for start, stop in ranges])
    assert numbers_of(found) == want.tolist()
    assert max(map(len, found)) <= 256
    assert list(parses.stream(groups, order, [])) == []


def test_a_shard_that_is_not_on_this_machine_is_named(tmp_path: Path) -> None:
    parses = numbered(tmp_path, [range(2)])
    path = parses.files[0].path
    Path(path).unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is not on this machine"):
        list(parses.stream(parses.groups(1), np.arange(1), [(0, 2)]))


def test_a_stream_leaves_the_threads_of_torch_to_the_step(
    parses: Parses, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def noted(table: pa.Table, told: Told | None) -> Batch:
        found.append(torch.get_num_threads())
        return to_batch(table, told)

    monkeypatch.setattr(module, "to_batch", noted)
    torch.set_num_threads(2)
    groups = parses.groups(1)
    list(parses.stream(groups, np.arange(len(groups.rows)), [(0, int(groups.rows.sum()))]))
    assert set(found) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("side", [28, 64, 256])
def test_a_stream_makes_a_request_for_4_mb_of_rows_at_most(side: int, tmp_path: Path) -> None:
    """Footers are read once; what is asked of the store is counted. The files are of the size of a shard."""
    count = DataConfig(source="imagefolder", path="x", image_size=side, channels=1).rows_a_shard
    for number in range(3):
        images = np.random.default_rng(number).integers(0, 256, (count, 1, side, side), np.uint8)
        steps = torch.zeros(count, 25, dtype=torch.int64)
        z = PartSequence(steps > 0, steps, steps)
        rows = Rows([f"{number} {row}" for row in range(count)], images)
        content = to_parquet(rows, z, np.zeros(count, np.float32))
        write_bytes(LOCAL, str(tmp_path / f"{number}.parquet"), content)
    counting = Counting()
    parses = open_parses(fs.PyFileSystem(counting), str(tmp_path))
    groups, total = parses.groups(side**2), len(parses)
    for epoch in range(3):
        before = counting.counts["reads"]
        order = np.random.default_rng(epoch).permutation(len(groups.rows))
        assert sum(map(len, parses.stream(groups, order, [(0, total)]))) == total
        footers = 2 * len(parses.files) if epoch == 0 else 0
        assert counting.counts["reads"] - before - footers <= total * side**2 / (4 << 20)


def in_files(folder: Path, order: np.ndarray, rows: int, row_group: int = 256) -> Parses:
    files = [order[start : start + rows].tolist() for start in range(0, len(order), rows)]
    return numbered(folder, files, row_group)


def test_a_sample_is_of_the_ids_not_of_the_shards(tmp_path: Path) -> None:
    shards = [
        in_files(tmp_path / "a", np.arange(COUNT), 100, row_group=16),
        in_files(tmp_path / "b", np.random.default_rng(0).permutation(COUNT), 37, row_group=16),
    ]
    # The ids in order, one permutation by PyTorch of the seed: as all versions chose.
    expected = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    for parses in shards:
        assert numbers_of([parses.in_id_order()]) == list(range(COUNT))
        assert numbers_of([parses.sample(40, seed=3)]) == expected[:40].tolist()
        assert numbers_of([parses.sample(10**6, seed=3)]) == expected.tolist()


def test_only_the_row_groups_of_a_sample_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parses = in_files(tmp_path, np.arange(COUNT), 100, row_group=10)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, group: int, columns: list[str]) -> object:
        read.append(group)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    parses.sample(2, seed=0)
    assert 1 <= len(read) <= 2


def test_some_images_are_whole_row_groups_until_the_limit(tmp_path: Path) -> None:
    parses = in_files(tmp_path, np.arange(3003), 1500)
    blocks = list(parses.images(10_000, seed=0))
    assert sorted(map(len, blocks)) == [3, 220, 220, *[256] * 10]
    pixels = torch.cat(blocks).int()
    assert (256 * pixels[:, 0, 0, 0] + pixels[:, 0, 1, 1]).sort().values.tolist() == list(range(3003))
    few = list(parses.images(1100, seed=0))
    assert sum(map(len, few)) == 1100
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(few, blocks, strict=False))
    assert not torch.equal(torch.cat(list(parses.images(1100, seed=1))), torch.cat(few))
    assert list(Parses(LOCAL, ()).images(5, 0)) == []


def test_at_most_so_many_files_are_chosen(tmp_path: Path) -> None:
    parses = in_files(tmp_path, np.arange(24), 2)
    drawn = [parses.some(5, seed).files for seed in range(40)]
    assert all(len(files) == 5 and list(files) == sorted(files, key=lambda f: f.path) for files in drawn)
    assert drawn[0] == parses.some(5, seed=0).files
    assert len({file.path for files in drawn for file in files}) == 12
    assert parses.some(12, seed=0) == parses


def test_a_sample_of_very_many_rows_reads_the_ids_of_some_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parses = in_files(tmp_path, np.arange(48), 4)
    monkeypatch.setattr(module, "MOST_IDS", 16)
    sample = numbers_of([parses.sample(6, seed=0)])
    assert len(sample) == 6
    assert sample == numbers_of([parses.sample(6, seed=0)])
    several = [numbers_of([parses.sample(6, seed)]) for seed in range(30)]
    assert all(len({number // 4 for number in numbers}) <= 4 for numbers in several)
    assert len({number for numbers in several for number in numbers}) > 40
    assert len(parses.sample(40, seed=0)) == 40


def test_the_list_of_the_stage_stands_for_the_files(tmp_path: Path) -> None:
    """No file is looked at, and one that is not in the list is not read."""
    numbered(tmp_path / "train", [range(3), range(3, 7)])
    again = "run the stage `parse` again"
    with pytest.raises(UserError, match=rf"files.json .* {again}"):
        Parses.of_split(LOCAL, str(tmp_path), "train")
    name = "train/00001.parquet"
    write_list(LOCAL, str(tmp_path), {"train": {name: 4}, "valid": {}})
    found = Parses.of_split(LOCAL, str(tmp_path), "train")
    assert [(file.path, file.rows) for file in found.files] == [(str(tmp_path / name), 4)]
    assert numbers_of([found.at(np.arange(4))]) == [3, 4, 5, 6]
    for split in ("valid", "test"):
        assert len(Parses.of_split(LOCAL, str(tmp_path), split)) == 0
    (tmp_path / "files.json").write_text("{")
    with pytest.raises(UserError, match=r"files.json"):
        Parses.of_split(LOCAL, str(tmp_path), "train")
