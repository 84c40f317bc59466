"""Shards of images and of parses: what is written is read back, and only the requested rows are decoded."""

import io
import json
import pickle
from dataclasses import replace
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
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.data import parses as module
from npdraw_dist.data.parquet import images_of, images_to_parquet, rows_a_group, rows_of
from npdraw_dist.data.parses import READ_BYTES, Conditions, Parses, RowGroups, to_batch
from npdraw_dist.data.rows import Rows
from npdraw_dist.system.errors import UserError
from tests.helpers.counting import Counting
from tests.helpers.rows import Parsed, numbered, numbers_of, open_parses, write_run
from tests.helpers.tiny_models import same

N, T = 2500, 6
LOCAL = fs.LocalFileSystem()
STARTS = np.cumsum([0, 700, 5000, 3, 1024, 2100])  # 5000 is two reads, 2100 is many row groups
COUNT = 300  # images of the tests of samples


def sample(count: int = N, parts: int = 50, start: int = 0) -> Parsed:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 5), generator=generator).to(torch.uint8).numpy()
    rows = Rows([f"x-{start + i}" for i in range(count)], images, np.arange(count, dtype=np.int64) % 10)
    z = PartSequence(
        torch.rand(count, T, generator=generator) < 0.5,
        torch.randint(0, 36, (count, T), generator=generator),
        torch.randint(0, parts, (count, T), generator=generator),
    )
    return Parsed(rows, z, np.linspace(0, 1, count, dtype=np.float32))


def write(folder: Path, *shards: Parsed) -> Parses:
    write_run(LOCAL, str(folder), {"train": shards})
    return open_parses(LOCAL, str(folder))


def canonical(made: Parsed) -> PartSequence:
    assert made.z is not None
    return made.z.canonical()


@pytest.mark.parametrize("parts", [50, 100_000])
def test_round_trip(tmp_path: Path, parts: int) -> None:
    made = sample(parts=parts)
    rows, z = made.rows, canonical(made)
    found = write(tmp_path, made).at(np.arange(N))
    np.testing.assert_array_equal(found.images.numpy(), rows.images)
    assert same(found.z, z)
    # A batch keeps the types of the disk.
    assert found.where.dtype == torch.int16
    assert found.what.dtype == (torch.int16 if parts < 2**15 else torch.int32)
    # Plain pyarrow reads it too.
    images = pq.read_table(tmp_path / "data" / "train" / "train-00000.parquet")
    assert images.column_names == ["id", "image", "label", "split"]
    np.testing.assert_array_equal(images["label"].to_numpy(), rows.labels)
    np.testing.assert_array_equal(images_of(images), rows.images)
    parsed = pq.read_table(tmp_path / "parses" / "train" / "train-00000.parquet")
    assert parsed.column_names == ["id", "whether", "where", "what", "squared_error"]
    assert parsed["id"].to_pylist() == images["id"].to_pylist() == rows.ids
    assert parsed["whether"].to_pylist() == z.whether.tolist()
    np.testing.assert_array_equal(parsed["squared_error"].to_numpy(), made.squared_error)
    for name in ("whether", "where", "what"):
        images = images.append_column(name, parsed[name])
    batch = to_batch(images.slice(2, 3))
    np.testing.assert_array_equal(batch.images.numpy(), rows.images[2:5])
    assert same(batch.z, z[2:5])


@pytest.mark.parametrize("count", [0, 1, 700])
def test_a_canonical_shard_reads_back(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.data.parquet.ROW_GROUP_BYTES", 1 << 14)
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 5, 4), np.uint8)
    rows = Rows([str(n) for n in range(count)], images, np.arange(count), words=["w"] * count)
    content = images_to_parquet(rows, "train", ["x", "y"])
    with pq.ParquetFile(io.BytesIO(content)) as file:
        found, groups = file.read(), file.metadata.num_row_groups
    assert groups == max(-(-count // rows_a_group((3, 5, 4))), 1)
    back = rows_of(found)
    assert (back.ids, back.words) == (rows.ids, rows.words)
    np.testing.assert_array_equal(back.images, images)
    np.testing.assert_array_equal(back.known_labels(), rows.known_labels())
    np.testing.assert_array_equal(images_of(found.slice(3, 5)), images[3:8])


def test_shards_of_different_types_are_read_together(tmp_path: Path) -> None:
    few, many = sample(5, parts=50), sample(5, parts=100_000, start=5)
    found = write(tmp_path, few, many).at(np.arange(10))
    assert same(found.z, PartSequence.cat([canonical(few), canonical(many)]))


def test_no_labels_no_rows_and_no_steps(tmp_path: Path) -> None:
    made = sample(3)
    write(tmp_path / "a", replace(made, rows=replace(made.rows, labels=None)))
    table = pq.read_table(tmp_path / "a" / "data" / "train" / "train-00000.parquet")
    assert table["label"].to_pylist() == [-1, -1, -1]
    batch = write(tmp_path / "b", sample(0)).in_id_order()
    assert (batch.images.shape, batch.whether.shape) == ((0, 3, 4, 5), (0, T))
    batch = write(tmp_path / "c", Parsed(made.rows)).in_id_order()
    np.testing.assert_array_equal(batch.images.numpy(), made.rows.images)
    assert batch.whether.shape == (3, 0)


@pytest.mark.parametrize("part", ["data", "parses"])
def test_damaged_shards_are_named(tmp_path: Path, part: str) -> None:
    parses = write(tmp_path, sample(20))
    path = tmp_path / part / "train" / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{part}/train/train-00000\.parquet .* run the stage again"):
        parses.at(np.arange(20))
    with pytest.raises(UserError, match="no image"):
        open_parses(LOCAL, str(tmp_path), "valid").in_id_order()


@pytest.fixture(scope="module")
def parses(tmp_path_factory: pytest.TempPathFactory) -> Parses:
    folder = tmp_path_factory.mktemp("parses")
    return numbered(folder, [range(*ends) for ends in pairwise(STARTS)])


def requested_groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """`data` or `parses`, and the row groups, of each later read of some row groups."""
    requested: list[tuple[str, list[int]]] = []
    opened: dict[int, str] = {}
    begin, read = pq.ParquetFile.__init__, pq.ParquetFile.read_row_groups

    def noted_file(self: pq.ParquetFile, source: Any, **options: Any) -> None:
        opened[id(self)] = Path(source).parts[-3]
        begin(self, source, **options)

    def noted(self: pq.ParquetFile, groups: list[int], **options: Any) -> Any:
        requested.append((opened[id(self)], groups))
        return read(self, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "__init__", noted_file)
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    return requested


def test_only_the_row_groups_of_the_range_are_decoded(
    parses: Parses, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = requested_groups(monkeypatch)
    own = replace(parses, files=parses.files[4:])
    for start, stop, groups in [(512, 1024, [2, 3]), (1000, 1025, [3, 4]), (2048, 2100, [8]), (5, 9, [0])]:
        whole = RowGroups.of(own.files, own.files[0].rows)
        found = list(own.stream(whole, np.arange(1), [(start, stop)]))
        assert numbers_of(found) == list(range(STARTS[4] + start, STARTS[4] + stop))
        assert requested == [("data", groups), ("parses", groups)]
        requested.clear()


def test_rows_come_in_the_requested_order(parses: Parses) -> None:
    assert len(parses) == STARTS[-1]
    for rows in (range(650, 760), range(5699, 5704), [8826, 0, 5000, 4999, 700, 0, 1023, 1024]):
        assert numbers_of([parses.at(np.array(rows))]) == list(rows)
    others = replace(parses, files=tuple(parses.files[index] for index in (4, 0, 3)))
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
    assert len(replace(parses, files=()).groups(1).rows) == 0
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
    path = tmp_path / "data" / parses.files[0].path
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is not on this machine"):
        list(parses.stream(parses.groups(1), np.arange(1), [(0, 2)]))


def test_a_stream_leaves_the_threads_of_torch_to_the_step(
    parses: Parses, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def noted(table: pa.Table, conditions: Conditions | None) -> Batch:
        found.append(torch.get_num_threads())
        return to_batch(table, conditions)

    monkeypatch.setattr(module, "to_batch", noted)
    torch.set_num_threads(2)
    groups = parses.groups(1)
    list(parses.stream(groups, np.arange(len(groups.rows)), [(0, int(groups.rows.sum()))]))
    assert set(found) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("side", [28, 64, 256])
def test_a_stream_makes_a_request_for_each_4_mb_of_rows_at_most(side: int, tmp_path: Path) -> None:
    """For each of the two files of a shard of the default size. Footers are read once."""
    count = DataConfig(source="imagefolder", path="x", image_size=side, channels=1).rows_a_shard
    shards, steps = list[Parsed](), torch.zeros(count, 25, dtype=torch.int64)
    for number in range(3):
        images = np.random.default_rng(number).integers(0, 256, (count, 1, side, side), np.uint8)
        rows = Rows([f"{number} {row}" for row in range(count)], images)
        shards.append(Parsed(rows, PartSequence(steps > 0, steps, steps)))
    write(tmp_path, *shards)
    counting = Counting()
    parses = open_parses(fs.PyFileSystem(counting), str(tmp_path))
    groups, total = parses.groups(side**2), len(parses)
    for own, files in ((replace(parses, parses=None), 1), (parses, 2)):
        for epoch in range(3):
            before = counting.counts["reads"]
            order = np.random.default_rng(epoch).permutation(len(groups.rows))
            assert sum(map(len, own.stream(groups, order, [(0, total)]))) == total
            footers = 2 * files * len(own.files) if epoch == 0 else 0
            assert counting.counts["reads"] - before - footers <= files * total * side**2 / (4 << 20)


def in_files(folder: Path, order: np.ndarray, rows: int, row_group: int = 256) -> Parses:
    files = [order[start : start + rows].tolist() for start in range(0, len(order), rows)]
    return numbered(folder, files, row_group)


def test_a_sample_depends_on_the_ids_and_not_on_the_shards(tmp_path: Path) -> None:
    shards = [
        in_files(tmp_path / "a", np.arange(COUNT), 100, row_group=16),
        in_files(tmp_path / "b", np.random.default_rng(0).permutation(COUNT), 37, row_group=16),
    ]
    # All versions chose so: the ids in order, and PyTorch's permutation of the seed.
    expected = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    for parses in shards:
        assert numbers_of([parses.in_id_order()]) == list(range(COUNT))
        assert numbers_of([parses.sample(40, seed=3)]) == expected[:40].tolist()
        assert numbers_of([parses.sample(10**6, seed=3)]) == expected.tolist()


def test_only_the_row_groups_of_a_sample_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parses = in_files(tmp_path, np.arange(COUNT), 100, row_group=10)
    requested = requested_groups(monkeypatch)
    parses.sample(2, seed=0)
    for part in ("data", "parses"):
        own = [groups for where, groups in requested if where == part]
        assert 1 <= len(own) <= 2
        assert all(len(groups) == 1 for groups in own)


def test_some_images_are_whole_row_groups_until_the_limit(tmp_path: Path) -> None:
    parses = in_files(tmp_path, np.arange(3003), 1500)
    blocks = list(parses.some_images(10_000, seed=0))
    assert sorted(map(len, blocks)) == [3, 220, 220, *[256] * 10]
    pixels = torch.cat(blocks).int()
    assert (256 * pixels[:, 0, 0, 0] + pixels[:, 0, 1, 1]).sort().values.tolist() == list(range(3003))
    few = list(parses.some_images(1100, seed=0))
    assert sum(map(len, few)) == 1100
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(few, blocks, strict=False))
    assert not torch.equal(torch.cat(list(parses.some_images(1100, seed=1))), torch.cat(few))
    assert list(replace(parses, files=()).some_images(5, 0)) == []


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


def test_the_manifest_stands_for_the_files(tmp_path: Path) -> None:
    """No folder is listed, and a file that is not in the manifest is not read."""
    numbered(tmp_path, [range(3), range(3, 7)])
    path = tmp_path / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = manifest["files"][1:]
    path.write_text(json.dumps(manifest))
    found = open_parses(LOCAL, str(tmp_path))
    assert [(file.path, file.rows) for file in found.files] == [("train/train-00001.parquet", 4)]
    assert numbers_of([found.at(np.arange(4))]) == [3, 4, 5, 6]
    for split in ("valid", "test"):
        assert len(open_parses(LOCAL, str(tmp_path), split)) == 0
    path.write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        open_parses(LOCAL, str(tmp_path))


def test_parses_are_read_by_another_process(parses: Parses) -> None:
    list(parses.stream(parses.groups(1), np.arange(1), [(0, 1)]))  # it knows footers
    again = pickle.loads(pickle.dumps(parses))
    assert numbers_of([again.at(np.arange(3))]) == [0, 1, 2]
