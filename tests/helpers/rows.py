"""Rows of several shards as one, and runs of given images and parses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.prepared import MAKER
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.data import parquet
from npdraw_dist.data.parquet import digest_of, images_to_parquet, parses_to_parquet, rows_a_group
from npdraw_dist.data.parses import Parses
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Canonical, open_source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.system.storage import is_file, write_bytes, write_text


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
    """id -> image of all splits, which have no id in common."""
    every = concat(list(parts.values()))
    return dict(zip(every.ids, every.images, strict=True))


@dataclass(frozen=True)
class Parsed:
    """The rows of a shard, with their parses if there are some."""

    rows: Rows
    z: PartSequence | None = None
    squared_error: NDArray[np.float32] | None = None


def write_run(
    filesystem: fs.FileSystem,
    root: str,
    splits: Mapping[Split, Sequence[Parsed]],
    classes: Sequence[str] = (),
) -> Canonical:
    """Writes canonical shards in <root>/data, and parses in <root>/parses, each with its manifest."""
    files, digests = list[dict[str, object]](), dict[str, str]()
    shape, parsed = (1, 28, 28), False
    for split, shards in splits.items():
        total = 0
        for number, shard in enumerate(shards):
            file = f"{split}/{split}-{number:05d}.parquet"
            content = images_to_parquet(shard.rows, split, classes)
            write_bytes(filesystem, f"{root}/data/{file}", content)
            files.append({"file": file, "split": split, "rows": len(shard.rows), "bytes": len(content)})
            total, shape = total + digest_of(shard.rows), shard.rows.images.shape[1:]
            if shard.z is not None:
                parsed, group = True, rows_a_group(shape)
                error = (
                    np.zeros(len(shard.rows), np.float32)
                    if shard.squared_error is None
                    else shard.squared_error
                )
                write_bytes(
                    filesystem,
                    f"{root}/parses/{file}",
                    parses_to_parquet(shard.rows.ids, shard.z, error, group),
                )
        digests[split] = f"{total % 2**128:032x}"
    counts = {split: sum(len(shard.rows) for shard in shards) for split, shards in splits.items()}
    manifest: dict[str, Any] = {
        "maker": MAKER,
        "shards": "parquet",
        "shape": list(shape),
        "splits": counts,
        "images": sum(counts.values()),
        "rejected": 0,
        "digests": digests,
        "classes": list(classes),
        "has_words": any(shard.rows.words is not None for own in splits.values() for shard in own),
        "files": files,
        "stamp": "written by a test",
    }
    write_text(filesystem, f"{root}/data/manifest.json", json.dumps(manifest))
    if parsed:
        write_text(filesystem, f"{root}/parses/manifest.json", json.dumps({"splits": counts}))
    found = Canonical.at(filesystem, f"{root}/data")
    assert found is not None
    return found


def open_parses(filesystem: fs.FileSystem, root: str, split: Split = "train") -> Parses:
    """The images of a split that `write_run` wrote, and their parses if there are some."""
    shards = Canonical.at(filesystem, f"{root}/data")
    assert shards is not None
    has = is_file(filesystem, f"{root}/parses/manifest.json")
    return Parses.of_split(shards, split, (filesystem, f"{root}/parses") if has else None)


def numbered(folder: Path, files: Sequence[Sequence[int]], row_group: int = 256) -> Parses:
    """Shards of rows with these numbers, which their ids, images and parses carry."""
    parts = []
    for numbers in files:
        row = np.array(numbers, np.int64)
        images = np.zeros((len(row), 1, 2, 2), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 1, 1] = row // 256, row % 256
        where = torch.from_numpy(np.stack([row, row], 1))
        z = PartSequence(torch.ones_like(where, dtype=torch.bool), where % 7, where)
        parts.append(Parsed(Rows([f"x{n:05d}" for n in row], images), z))
    local = fs.LocalFileSystem()
    with mock.patch.object(parquet, "ROW_GROUP_BYTES", 4 * row_group):
        write_run(local, str(folder), {"train": parts})
    return open_parses(local, str(folder))


def numbers_of(batches: Sequence[Batch]) -> list[int]:
    """The numbers of rows that `numbered` wrote. Image and parse must agree."""
    whole = Batch.cat(list(batches))
    what = whole.what[:, 0].int()
    assert torch.equal(256 * whole.images[:, 0, 0, 0].int() + whole.images[:, 0, 1, 1], what)
    assert torch.equal(whole.where[:, 1].int(), what % 7)
    numbers: list[int] = what.tolist()
    return numbers
