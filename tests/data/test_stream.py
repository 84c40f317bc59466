"""The stream gives exactly the rows asked for, in the order of the files given, and decodes no others."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data import stream as module
from npdraw_dist.data.parses import to_columns, write_parses
from npdraw_dist.data.stream import (
    COLUMNS,
    PIECE_ROWS,
    ShardFile,
    _pieces,
    _read,
    list_shards,
    read_table,
    stream,
)

LOCAL = fs.LocalFileSystem()
ROWS = (700, 5000, 3, 1024, 2100)  # 5000 is two pieces, 2100 is three row groups
STARTS = np.cumsum([0, *ROWS])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[ShardFile]:
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
        write_parses(path, LOCAL, ids, images, None, z, np.zeros(count, np.float32))
    (folder / "manifest.json").write_text("{}")
    return list_shards(LOCAL, str(folder))


def numbers(order: list[int]) -> np.ndarray:
    """The row numbers of files one after another."""
    return np.concatenate([np.arange(STARTS[i], STARTS[i + 1]) for i in order])


def test_shards_are_listed_with_their_rows(files: list[ShardFile], tmp_path: Path) -> None:
    assert [file.rows for file in files] == list(ROWS)
    assert [Path(file.path).name for file in files] == [f"train-{i:05d}.parquet" for i in range(len(ROWS))]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"a\.parquet is no readable shard .* run the stage `parse` again"):
        list_shards(LOCAL, str(tmp_path))
    assert list_shards(LOCAL, str(tmp_path / "missing")) == []


@pytest.mark.parametrize(("start", "stop"), [(0, 8827), (650, 760), (700, 5700), (5699, 5704), (8826, 8827)])
def test_pieces_cover_the_range_once(files: list[ShardFile], start: int, stop: int) -> None:
    names = [file.path for file in files]
    pieces = _pieces(files, start, stop)
    rows = [STARTS[names.index(p["path"])] + np.arange(p["start"], p["stop"]) for p in pieces]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(start, stop))
    assert max(map(len, rows)) <= PIECE_ROWS
    assert _pieces(files, start, start) == []


def test_only_the_row_groups_of_the_range_are_decoded(
    files: list[ShardFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    class Spy(module.pq.ParquetFile):
        def read_row_groups(self, groups: list[int], **options: object) -> pa.Table:
            asked.append(groups)
            return super().read_row_groups(groups, **options)

    monkeypatch.setattr(module.pq, "ParquetFile", Spy)
    for start, stop, groups in [(1024, 2048, [1]), (1000, 1025, [0, 1]), (2048, 2100, [2]), (5, 9, [0])]:
        piece = {"path": np.array([files[4].path]), "start": np.array([start]), "stop": np.array([stop])}
        _, z = to_columns(_read(piece, LOCAL, COLUMNS))
        assert z.what[:, 0].tolist() == (STARTS[4] + np.arange(start, stop)).tolist()
        assert asked.pop() == groups


@pytest.mark.parametrize(("start", "stop"), [(0, 8827), (650, 760), (5699, 5704), (8826, 8827)])
def test_a_table_read_at_once_has_the_rows_in_order(files: list[ShardFile], start: int, stop: int) -> None:
    table = read_table([files[i] for i in (4, 0, 3, 1, 2)], LOCAL, start, stop, ["id", "what"])
    want = numbers([4, 0, 3, 1, 2])[start:stop]
    assert table["id"].to_pylist() == [f"x-{i}" for i in want]
    assert [row[0] for row in table["what"].to_pylist()] == want.tolist()


@pytest.mark.ray
def test_rows_come_in_the_order_of_the_files(files: list[ShardFile]) -> None:
    from npdraw_dist.training.launch import start_ray

    start_ray(ScaleConfig(object_store_mb=128))
    # A ring that is read past its end lists a file twice.
    for order, start, stop in [
        ([4, 0, 3, 1, 2], 0, 8827),
        ([2, 1, 0, 4, 2, 1], 4000, 9500),
        ([1], 4990, 5000),
    ]:
        batches = list(stream([files[i] for i in order], LOCAL, start, stop))
        want = numbers(order)[start:stop]
        what = torch.cat([batch.z.what for batch in batches])
        np.testing.assert_array_equal(what.numpy(), np.stack([want, want], 1))
        images = torch.cat([batch.images for batch in batches])
        assert images.shape == (len(want), 1, 2, 2)
        np.testing.assert_array_equal(images[:, 0, 1, 1].numpy(), want % 256)
        assert torch.cat([batch.z.where for batch in batches])[:, 1].tolist() == (want % 7).tolist()
        assert max(map(len, batches)) <= PIECE_ROWS
    assert list(stream(files, LOCAL, 5, 5)) == []
