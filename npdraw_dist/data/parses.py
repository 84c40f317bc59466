"""The images and parses of a run as batches: rows of canonical shards with the rows of `parses/` beside them.

A shard of parses has the rows of its shard of images in the same order and row groups (`data.parquet` names
the columns). The images of a baseline have no parses beside them.
Shapes: N images, C channels, H x W pixels, T steps, G groups.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs
from torch import Tensor

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.process import background_threads
from npdraw_dist.core.storage import in_threads
from npdraw_dist.core.vocabulary import Vocabulary
from npdraw_dist.data.parquet import Z, images_of, lists_of, opened_shard
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Canonical

# A stream reads rows of so many bytes with one request for each file. By default a shard is one such read.
READ_BYTES = 12 << 20
MOST_IDS = 1 << 20  # `sample` chooses from about so many
AHEAD = 3  # reads of a stream at once
IMAGES_AT_ONCE = 256  # rows of a group that `some_images` draws
FOOTERS = 4096  # footers of files that a stream keeps


class ShardFile(NamedTuple):
    """A shard. path: below the root of the images and of the parses. rows: as the manifest says."""

    path: str
    rows: int


class RowRange(NamedTuple):
    """Rows [start, stop) of a file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class RowGroups:
    """The rows of some files in groups, each of one file, in the order of the files.

    file, start, rows: (G,), the number of its file, its first row there, and its rows.
    """

    paths: Sequence[str]
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, files: Sequence[ShardFile], most: int) -> "RowGroups":
        """most: rows of a group."""
        sizes = np.array([file.rows for file in files], np.int64)
        counts = -(-sizes // most)
        file = np.repeat(np.arange(len(sizes)), counts)
        start = most * (np.arange(len(file)) - np.repeat(counts.cumsum() - counts, counts))
        return cls([file.path for file in files], file, start, np.minimum(sizes[file] - start, most))

    def piece(self, group: int, first: int, last: int) -> RowRange:
        """Rows [first, last) of a group."""
        start = int(self.start[group])
        return RowRange(self.paths[self.file[group]], start + first, start + last)

    def reads(self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[RowRange]:
        """The pieces of rows [start, stop) of each range, counted over the groups in `order`."""
        ends = self.rows[order].cumsum()
        for start, stop in ranges:
            position = int(ends.searchsorted(start, "right"))
            while start < stop:
                group, end = int(order[position]), int(ends[position])
                before = end - int(self.rows[group])
                yield self.piece(group, start - before, min(stop, end) - before)
                start, position = end, position + 1


@dataclass(frozen=True)
class Conditions:
    """What the prior is conditioned on, read for each image. classes: names of the labels of the data."""

    vocabulary: Vocabulary
    classes: Sequence[str]

    @property
    def column(self) -> str:
        return self.vocabulary.column

    def read(self, table: pa.Table) -> Tensor:
        """(N, A) tokens of the rows of a table."""
        has = self.column in table.column_names
        values = table[self.column].to_numpy() if has else [""] * len(table)
        return self.vocabulary.read(values, self.classes)

    def of_rows(self, rows: Rows) -> Tensor:
        """(N, A) tokens of rows as a source gives them."""
        values: dict[str, Any] = {"label": rows.known_labels(), "words": rows.words or [""] * len(rows)}
        return self.vocabulary.read(values[self.column], self.classes)


@dataclass(frozen=True)
class Parses:
    """The images of one split with their parses: the rows of some shards, one after another.

    Only their names and numbers of rows are in memory. images: folder of the canonical shards. parses: that
    of their parses; None for the images alone. All methods raise UserError if a file is damaged.
    """

    files: tuple[ShardFile, ...]
    images: tuple[fs.FileSystem, str]
    parses: tuple[fs.FileSystem, str] | None = None
    conditions: Conditions | None = None

    @classmethod
    def of_split(
        cls,
        shards: Canonical,
        split: str,
        parses: tuple[fs.FileSystem, str] | None = None,
        conditions: Conditions | None = None,
    ) -> "Parses":
        """The shards of a split, by name."""
        files = sorted(ShardFile(*item) for item in shards.manifest.files.get(split, {}).items())
        return cls(tuple(files), (shards.filesystem, shards.root), parses, conditions)

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def some(self, most: int, seed: int) -> "Parses":
        """At most `most` of the files, chosen by the seed, in their order."""
        if len(self.files) <= most:
            return self
        chosen = np.random.default_rng(seed).choice(len(self.files), most, replace=False)
        return replace(self, files=tuple(self.files[index] for index in np.sort(chosen)))

    def in_id_order(self) -> Batch:
        """All rows, sorted by id, so that their order does not depend on the shards."""
        tables = in_threads(lambda file: self._read(file.path, ["id", *self.columns]), self.files)
        whole = self._join([to_batch(table, self.conditions) for table in tables])
        return whole[torch.from_numpy(_id_order([table["id"] for table in tables]))]

    def sample(self, limit: int, seed: int) -> Batch:
        """At most `limit` rows of all files, in random order, by the ids and the seed, not by the shards.

        Of more than MOST_IDS rows, only some files are looked at, chosen by the seed.
        """
        if len(self) > MOST_IDS and len(self.files) > 1:
            most = max(len(self.files) * max(MOST_IDS, limit) // len(self), 1)
            if most < len(self.files):
                return self.some(most, seed).sample(limit, seed)
        order = _id_order(self._ids())
        chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:limit]
        return self.at(order[chosen.numpy()])

    def find(self, image_id: str) -> int | None:
        """The row of the image with this id; None if there is none. Reads the ids of all files."""
        row = pc.index(_joined(self._ids()), image_id).as_py()
        return None if row < 0 else int(row)

    def at(self, rows: NDArray[np.int64]) -> Batch:
        """The given rows (n,), in the given order."""
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum([file.rows for file in self.files])
        number = np.searchsorted(ends, rows[order], side="right")  # the file of each row

        def read(index: int) -> Batch:
            file, parts = self.files[index], list[Batch]()
            own = rows[order[number == index]] - (ends[index] - file.rows)
            first = self._first_rows(file.path)
            groups = np.searchsorted(first, own, side="right") - 1
            for group in np.unique(groups):  # one at a time in memory
                batch = to_batch(self._read(file.path, self.columns, [int(group)]), self.conditions)
                parts.append(batch[torch.from_numpy(own[groups == group] - first[group])])
            return Batch.cat(parts)

        found = self._join(in_threads(read, np.unique(number).tolist()))
        return found[torch.from_numpy(np.argsort(order))]

    def some_images(self, limit: int, seed: int) -> Iterator[torch.Tensor]:
        """At most `limit` images, uint8 (M, C, H, W) of a row group each time, drawn by the seed."""
        groups = RowGroups.of(self.files, IMAGES_AT_ONCE)
        for index in np.random.default_rng(seed).permutation(len(groups.rows)):
            if limit <= 0:
                return
            table = self._read_range(groups.piece(index, 0, int(groups.rows[index])), ["image"])
            images = torch.tensor(images_of(table))[:limit]
            limit -= len(images)
            yield images

    def groups(self, row_bytes: int) -> RowGroups:
        """The groups whose order `stream` takes, of READ_BYTES each."""
        return RowGroups.of(self.files, max(READ_BYTES // row_bytes, 1))

    def stream(
        self, groups: RowGroups, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]
    ) -> Iterator[Batch]:
        """Rows [start, stop) of each range, counted over the groups in `order`, read ahead by threads.

        Reading and decoding leave the interpreter to the training step, which a task of Ray Data in the same
        process did not; `docs/results` has the rates.
        """
        with background_threads(AHEAD, "stream") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for piece in groups.reads(order, ranges):
                    ahead.append(pool.submit(self._batch, piece))
                    if len(ahead) > AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _batch(self, piece: RowRange) -> Batch:
        filesystem, root = self.images
        path = f"{root}/{piece.path}"
        if isinstance(filesystem, fs.LocalFileSystem) and not Path(path).exists():
            raise FileNotFoundError(f"{path} is not on this machine")
        return to_batch(self._read_range(piece, self.columns), self.conditions)

    @property
    def columns(self) -> list[str]:
        """What a batch is made of, as far as a file has it."""
        return [
            "image",
            *(Z if self.parses else ()),
            *(() if self.conditions is None else (self.conditions.column,)),
        ]

    def texts(self, most: int) -> Iterator[list[str]]:
        """The words of the first files, of about `most` images; nothing if there are none."""
        for file in self.files:
            if most <= 0:
                return
            table = self._read(file.path, ["words"])
            if "words" in table.column_names:
                yield table["words"].to_pylist()
            most -= file.rows

    def _read_range(self, piece: RowRange, columns: Sequence[str]) -> pa.Table:
        """The columns of some rows; the row groups that hold them are read whole."""
        first = self._first_rows(piece.path)
        start, stop = first.searchsorted(piece.start, "right") - 1, first[:-1].searchsorted(piece.stop)
        table = self._read(piece.path, columns, list(range(start, stop)))
        return table.slice(int(piece.start - first[start]), piece.stop - piece.start)

    def _read(self, path: str, columns: Sequence[str], groups: Sequence[int] | None = None) -> pa.Table:
        """The columns of a shard, of its images and of its parses; of all row groups if None."""
        table = self._part(self.images, path, [name for name in columns if name not in Z], groups)
        steps = [name for name in columns if name in Z]
        if steps and self.parses is not None:
            parsed = self._part(self.parses, path, steps, groups)
            for name in steps:
                table = table.append_column(name, parsed[name])
        return table

    def _part(
        self, where: tuple[fs.FileSystem, str], path: str, columns: list[str], groups: Sequence[int] | None
    ) -> pa.Table:
        filesystem, root = where
        with opened_shard(f"{root}/{path}", filesystem, self._footer(where, path)) as file:
            own = [name for name in columns if name in file.schema_arrow.names]
            return file.read(columns=own) if groups is None else file.read_row_groups(groups, columns=own)

    def _first_rows(self, path: str) -> NDArray[np.int64]:
        """The first row of each row group of a shard, then the rows of all."""
        footer = self._footer(self.images, path)
        sizes = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        return np.cumsum([0, *sizes])

    @cached_property
    def _footer(self) -> Callable[[tuple[fs.FileSystem, str], str], pq.FileMetaData]:
        """The footer of a file, read once."""

        @lru_cache(FOOTERS)
        def footer(is_image: bool, path: str) -> pq.FileMetaData:
            filesystem, root = self.images if is_image else self.parses or self.images
            with opened_shard(f"{root}/{path}", filesystem) as file:
                return file.metadata

        return lambda where, path: footer(where is self.images, path)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_footer"}

    def _ids(self) -> list[pa.ChunkedArray]:
        """The ids of each file, read by threads: Ray Data would take seconds to start."""
        return in_threads(lambda file: self._read(file.path, ["id"])["id"], self.files)

    def _join(self, batches: list[Batch]) -> Batch:
        if not batches:
            raise UserError(
                "the data have no image in a split that this stage needs; see data.valid_fraction and "
                "data.test_fraction"
            )
        return Batch.cat(batches)


def _joined(ids: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for own in ids for chunk in own.chunks], pa.string())


def _id_order(ids: list[pa.ChunkedArray]) -> NDArray[np.int64]:
    return pc.sort_indices(_joined(ids)).to_numpy().astype(np.int64)


def to_batch(table: pa.Table, conditions: Conditions | None = None) -> Batch:
    """image, whether, where and what in their types on disk. T is 0 if the table has no steps."""
    images = torch.tensor(images_of(table))
    condition = () if conditions is None else (conditions.read(table),)
    if "whether" not in table.column_names:
        return Batch.of(images, PartSequence.empty(len(images)), *condition)
    return Batch(images, *(torch.tensor(lists_of(table[name])) for name in Z), *condition)
