"""Reads the images and parses of a run as batches.

A shard of parses has the rows of its shard of images in the same order and row groups (`data.parquet` names
the columns). The images of a baseline have no parses.
Shapes: N images, C channels, H x W pixels, T steps, G groups, A tokens of a condition.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs
from torch import Tensor

from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.vocabulary import Vocabulary
from npdraw_dist.data.parquet import Z, images_of, lists_of, opened
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Canonical
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import background_threads
from npdraw_dist.system.storage import in_threads

READ_BYTES = 12 << 20  # bytes of rows that a stream reads at once, enough for a shard of default size
MOST_IDS = 1 << 20  # `sample` chooses from at most about this many ids
AHEAD = 3  # number of reads that a stream runs at the same time
IMAGES_AT_ONCE = 256  # number of images that `some_images` yields at once
FOOTERS = 4096  # number of file footers kept in memory


class ShardFile(NamedTuple):
    """A shard. path: its path below the folder of images or of parses. rows: its length in the manifest."""

    path: str
    rows: int


class RowRange(NamedTuple):
    """Rows [start, stop) of a file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class RowGroups:
    """Groups of consecutive rows, each group within one file. They are not the row groups of Parquet.

    file, start, rows: (G,), the index of each group's file, its first row in that file, and its number of
    rows.
    """

    paths: Sequence[str]
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, files: Sequence[ShardFile], most: int) -> "RowGroups":
        """Cuts the rows of `files` into groups of at most `most` rows."""
        sizes = np.array([file.rows for file in files], np.int64)
        counts = -(-sizes // most)
        file = np.repeat(np.arange(len(sizes)), counts)
        start = most * (np.arange(len(file)) - np.repeat(counts.cumsum() - counts, counts))
        return cls([file.path for file in files], file, start, np.minimum(sizes[file] - start, most))

    def reads(self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[RowRange]:
        """Yields the `RowRange`s of each range [start, stop) of rows, counted over the groups in `order`."""
        ends = self.rows[order].cumsum()
        for start, stop in ranges:
            position = int(ends.searchsorted(start, "right"))
            while start < stop:
                group, end = int(order[position]), int(ends[position])
                # A row's number in its file, minus its number counted over the groups in `order`.
                shift = int(self.start[group] + self.rows[group]) - end
                yield RowRange(self.paths[self.file[group]], start + shift, min(stop, end) + shift)
                start, position = end, position + 1


@dataclass(frozen=True)
class Conditions:
    """Reads the conditions of the prior. classes: names of the labels of the data."""

    vocabulary: Vocabulary
    classes: Sequence[str]

    @property
    def column(self) -> str:
        return self.vocabulary.column

    def read(self, table: pa.Table) -> Tensor:
        """The conditions of the rows of a table, as tokens (N, A)."""
        known = self.column in table.column_names
        values = table[self.column].to_numpy() if known else [""] * len(table)
        return self.vocabulary.read(values, self.classes)

    def of_rows(self, rows: Rows) -> Tensor:
        """The tokens (N, A) of rows that a source returns."""
        return self.vocabulary.read(rows.values(self.column), self.classes)


@dataclass(frozen=True)
class Parses:
    """The images of one split with their parses. The rows are those of `files`, one after another.

    Only the names of the files and their numbers of rows are in memory. images: folder of the canonical
    shards. parses: folder of their parses; None if only the images are read. All methods raise UserError if a
    file is damaged.
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
        """The rows of all shards of a split, in the order of the shards' names."""
        files = sorted(ShardFile(*item) for item in shards.manifest.files.get(split, {}).items())
        return cls(tuple(files), (shards.filesystem, shards.root), parses, conditions)

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def some(self, most: int, seed: int) -> "Parses":
        """The rows of at most `most` files, which the seed chooses and which keep their order."""
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
        """At most `limit` rows in random order. The ids and the seed determine the choice, not the shards.

        If there are more than MOST_IDS rows, the seed first chooses some files, and then rows of these.
        """
        if len(self) > MOST_IDS and len(self.files) > 1:
            most = max(len(self.files) * max(MOST_IDS, limit) // len(self), 1)
            if most < len(self.files):
                return self.some(most, seed).sample(limit, seed)
        order = _id_order(self._ids())
        chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:limit]
        return self.at(order[chosen.numpy()])

    def find(self, image_id: str) -> int | None:
        """The number of the row with this id; None if no row has it. Reads the ids of all files."""
        row = pc.index(_joined(self._ids()), image_id).as_py()
        return None if row < 0 else int(row)

    def at(self, rows: NDArray[np.int64]) -> Batch:
        """The rows with the numbers `rows` (n,), in that order."""
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum([file.rows for file in self.files])
        number = np.searchsorted(ends, rows[order], side="right")  # the file of each row

        def read(index: int) -> Batch:
            file, parts = self.files[index], list[Batch]()
            own = rows[order[number == index]] - (ends[index] - file.rows)
            first = self._first_rows(file.path)
            groups = np.searchsorted(first, own, side="right") - 1
            for group in np.unique(groups):  # so a thread holds one row group at a time
                batch = to_batch(self._read(file.path, self.columns, [int(group)]), self.conditions)
                parts.append(batch[torch.from_numpy(own[groups == group] - first[group])])
            return Batch.cat(parts)

        found = self._join(in_threads(read, np.unique(number).tolist()))
        return found[torch.from_numpy(np.argsort(order))]

    def some_images(self, limit: int, seed: int) -> Iterator[torch.Tensor]:
        """Yields batches of images, uint8 (M, C, H, W). The seed chooses them, at most `limit` in total."""
        groups = RowGroups.of(self.files, IMAGES_AT_ONCE)
        order = np.random.default_rng(seed).permutation(len(groups.rows))
        alone = replace(self, parses=None, conditions=None)
        for batch in alone.stream(groups, order, [(0, min(limit, len(self)))]):
            yield batch.images

    def groups(self, row_bytes: int) -> RowGroups:
        """Divides the rows into groups of READ_BYTES for `stream`. row_bytes: size of a row."""
        return RowGroups.of(self.files, max(READ_BYTES // row_bytes, 1))

    def stream(
        self, groups: RowGroups, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]
    ) -> Iterator[Batch]:
        """Yields the rows of each range [start, stop), counted over the groups in `order`, as batches.

        Threads read ahead. They leave the interpreter free for the training step, unlike a task of Ray Data
        in the same process; `docs/results` has the rates.
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
        # The row groups that hold the rows are read whole.
        first = self._first_rows(piece.path)
        start, stop = first.searchsorted(piece.start, "right") - 1, first[:-1].searchsorted(piece.stop)
        table = self._read(piece.path, self.columns, list(range(start, stop)))
        rows = table.slice(int(piece.start - first[start]), piece.stop - piece.start)
        return to_batch(rows, self.conditions)

    @property
    def columns(self) -> list[str]:
        """The names of the columns from which a batch is made. A file may lack some."""
        condition = [] if self.conditions is None else [self.conditions.column]
        return ["image", *(Z if self.parses else ()), *condition]

    def texts(self, most: int) -> Iterator[list[str]]:
        """Yields the words of one file after another, for about `most` images. Skips files without words."""
        for file in self.files:
            if most <= 0:
                return
            table = self._read(file.path, ["words"])
            if "words" in table.column_names:
                yield table["words"].to_pylist()
            most -= file.rows

    def _read(self, path: str, columns: Sequence[str], groups: Sequence[int] | None = None) -> pa.Table:
        """The columns of a shard's images and parses. groups: the row groups to read, all if None."""
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
        with opened(f"{root}/{path}", filesystem, self._footer(where is self.images, path)) as file:
            own = [name for name in columns if name in file.schema_arrow.names]
            if groups is None:
                return file.read(columns=own)
            # Threads of pyarrow would take a column each, and only that of the images is large.
            return file.read_row_groups(groups, columns=own, use_threads=False)

    def _first_rows(self, path: str) -> NDArray[np.int64]:
        """The first row of each row group of a shard, then the number of rows of the shard."""
        footer = self._footer(True, path)
        sizes = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        return np.cumsum([0, *sizes])

    @cached_property
    def _footer(self) -> Callable[[bool, str], pq.FileMetaData]:
        """A function that reads the footer of a file and caches it."""

        @lru_cache(FOOTERS)
        def footer(is_image: bool, path: str) -> pq.FileMetaData:
            filesystem, root = self.images if is_image else self.parses or self.images
            with opened(f"{root}/{path}", filesystem) as file:
                return file.metadata

        return footer

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_footer"}

    def _ids(self) -> list[pa.ChunkedArray]:
        """The ids of each file, read by threads, since Ray Data would take seconds to start."""
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
    """Converts a table to a batch and keeps its number types. T is 0 if the table has no parses."""
    images = torch.tensor(images_of(table))
    condition = () if conditions is None else (conditions.read(table),)
    if "whether" not in table.column_names:
        return Batch.of(images, PartSequence.empty(len(images)), *condition)
    return Batch(images, *(torch.tensor(lists_of(table[name])) for name in Z), *condition)
