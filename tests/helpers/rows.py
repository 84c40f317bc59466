"""Rows of several shards as one, and parses in folders without a list."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.storage import list_files, write_bytes
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.parses import Parses, ShardFile, write_list
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.data.splits import SPLITS, Split


def concat(rows: Sequence[Rows]) -> Rows:
    """One `Rows` of several (at least one). Labels are kept if all have them."""
    labels = [part.labels for part in rows if part.labels is not None]
    return Rows(
        [name for part in rows for name in part.ids],
        np.concatenate([part.images for part in rows]),
        np.concatenate(labels) if len(labels) == len(rows) else None,
        [reject for part in rows for reject in part.rejects],
    )


def read_all(data: DataConfig, seed: int = 0) -> dict[Split, Rows]:
    """The rows of each split that has some shards."""
    shards = {split: open_source(data, seed).shards(split) for split in SPLITS}
    return {split: concat([shard.read() for shard in own]) for split, own in shards.items() if own}


def by_id(parts: dict[Split, Rows]) -> dict[str, NDArray[np.uint8]]:
    """id -> image of all splits; no id is in two."""
    every = concat(list(parts.values()))
    return dict(zip(every.ids, every.images, strict=True))


def open_parses(filesystem: fs.FileSystem, folder: str) -> Parses:
    """The Parquet files below a folder, by name."""
    paths = [path for path, _ in list_files(filesystem, folder) if path.endswith(".parquet")]
    rows = [pq.read_metadata(path, filesystem=filesystem).num_rows for path in paths]
    return Parses(filesystem, tuple(map(ShardFile, paths, rows)))


def list_parses(filesystem: fs.FileSystem, root: str) -> None:
    """Writes the list of the stage `parse`, of what lies in its folder."""
    rows: dict[str, dict[str, int]] = {}
    for file in open_parses(filesystem, root).files:
        name = file.path[len(root) + 1 :]
        rows.setdefault(name.partition("/")[0], {})[name] = file.rows
    write_list(filesystem, root, rows)


def numbered(folder: Path, files: Sequence[Sequence[int]], row_group: int = 256) -> Parses:
    """Files of rows with these numbers, which their ids, images and parses carry."""
    local = fs.LocalFileSystem()
    for part, numbers in enumerate(files):
        row = np.array(numbers, np.int64)
        images = np.zeros((len(row), 1, 2, 2), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 1, 1] = row // 256, row % 256
        where = torch.from_numpy(np.stack([row, row], 1))
        z = PartSequence(torch.ones_like(where, dtype=torch.bool), where % 7, where)
        errors = np.zeros(len(row), np.float32)
        content = to_parquet(Rows([f"x{n:05d}" for n in row], images), z, errors, row_group)
        write_bytes(local, str(folder / f"{part:05d}.parquet"), content)
    return open_parses(local, str(folder))


def numbers_of(batches: Sequence[Batch]) -> list[int]:
    """The numbers of rows that `numbered` wrote. Image and parse must agree."""
    whole = Batch.cat(list(batches))
    what = whole.what[:, 0].int()
    assert torch.equal(256 * whole.images[:, 0, 0, 0].int() + whole.images[:, 0, 1, 1], what)
    assert torch.equal(whole.where[:, 1].int(), what % 7)
    numbers: list[int] = what.tolist()
    return numbers
