"""Parses on disk: Parquet with one row per image, readable by pyarrow, Ray Data and any other reader.

Columns: id string, image fixed-shape tensor of uint8, label int64 (-1 unknown), words string (if there are
any), whether, where and what as lists of T entries, squared_error float32 (mean over channels and pixels of
the canvas). The shards of a baseline have the columns before `whether` only.
Shapes: N images, C channels, H x W pixels, T steps, G groups.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
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
from npdraw_dist.core.storage import in_threads, read_bytes, require_readable, write_text
from npdraw_dist.core.vocabulary import Vocabulary
from npdraw_dist.data.rows import Rows

# Of rows that a stream reads, and puts in a random order, as one: a request each. A shard is one by default.
READ_BYTES = 12 << 20
COLUMNS = ["image", "whether", "where", "what"]  # fields of a Batch
LIST = "files.json"
MOST_IDS = 1 << 20  # `sample` chooses from so many
AHEAD = 3  # reads of a stream at once
IMAGES_AT_ONCE = 256  # rows of a group that `images` draws
FOOTERS = 4096  # of files, which a stream keeps


class ShardFile(NamedTuple):
    """A Parquet file of parses. rows: as its metadata says."""

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


@contextmanager
def _opened(
    path: str, filesystem: fs.FileSystem, footer: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    """footer: of the file, if known. Raises UserError if the file, or what is read of it, is damaged."""
    try:
        # All columns are asked for at once: a store answers each request after a while.
        with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True, metadata=footer) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        if not isinstance(error, FileNotFoundError):
            require_readable(filesystem, path)
        why = f"{path} is no readable shard of parses ({error}); run the stage `parse` again"
        raise UserError(why) from None


def read_range(piece: RowRange, filesystem: fs.FileSystem, footer: pq.FileMetaData | None = None) -> pa.Table:
    """Reads the row groups that hold the rows; all columns, since what lies together is one request."""
    with _opened(piece.path, filesystem, footer) as file:
        first = _first_rows(file)
        start, stop = first.searchsorted(piece.start, "right") - 1, first[:-1].searchsorted(piece.stop)
        table = file.read_row_groups(list(range(start, stop)))
    return table.slice(int(piece.start - first[start]), piece.stop - piece.start)


def _first_rows(file: pq.ParquetFile) -> NDArray[np.int64]:
    """The first row of each row group, then the rows of all."""
    metadata = file.metadata
    return np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])


@dataclass(frozen=True)
class Told:
    """What a batch says to the prior of each image. classes: names of the labels of the data."""

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
    """The parses of one split: the rows of some Parquet files, one file after another.

    Only their names and numbers of rows are in memory. All methods raise UserError if a file is damaged.
    """

    filesystem: fs.FileSystem
    files: tuple[ShardFile, ...]
    told: Told | None = None

    @classmethod
    def of_split(cls, filesystem: fs.FileSystem, root: str, split: str, told: Told | None = None) -> "Parses":
        """The files of a split in the folder `root` of the stage, by name, from the list that it wrote."""
        path = f"{root}/{LIST}"
        try:
            names = json.loads(read_bytes(filesystem, path)).get(split, {})
        except (FileNotFoundError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); run the stage `parse` again") from None
        files = sorted(ShardFile(f"{root}/{name}", names[name]) for name in names)
        return cls(filesystem, tuple(files), told)

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
        tables = self._tables(["id", *self.columns])
        whole = self._join([to_batch(table, self.told) for table in tables])
        return whole[torch.from_numpy(_id_order(tables))]

    def sample(self, limit: int, seed: int) -> Batch:
        """At most `limit` rows of all files, in random order, by the ids and the seed, not by the shards.

        Of more than MOST_IDS rows, only some files are looked at, chosen by the seed.
        """
        if len(self) > MOST_IDS and len(self.files) > 1:
            most = max(len(self.files) * max(MOST_IDS, limit) // len(self), 1)
            if most < len(self.files):
                return self.some(most, seed).sample(limit, seed)
        order = _id_order(self._tables(["id"]))
        chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:limit]
        return self.at(order[chosen.numpy()])

    def find(self, image_id: str) -> int | None:
        """The row of the image with this id; None if there is none. Reads the ids of all files."""
        row = pc.index(_ids(self._tables(["id"])), image_id).as_py()
        return None if row < 0 else int(row)

    def at(self, rows: NDArray[np.int64]) -> Batch:
        """The given rows (n,), in the given order."""
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum([file.rows for file in self.files])
        number = np.searchsorted(ends, rows[order], side="right")  # the file of each row

        def read(index: int) -> Batch:
            file, parts = self.files[index], list[Batch]()
            own = rows[order[number == index]] - (ends[index] - file.rows)
            with _opened(file.path, self.filesystem) as table:
                first = _first_rows(table)
                groups = np.searchsorted(first, own, side="right") - 1
                for group in np.unique(groups):  # one at a time in memory
                    batch = to_batch(table.read_row_group(int(group), columns=self.columns), self.told)
                    parts.append(batch[torch.from_numpy(own[groups == group] - first[group])])
            return Batch.cat(parts)

        found = self._join(in_threads(read, np.unique(number).tolist()))
        return found[torch.from_numpy(np.argsort(order))]

    def images(self, limit: int, seed: int) -> Iterator[torch.Tensor]:
        """At most `limit` images, uint8 (M, C, H, W) of a row group each time, drawn by the seed."""
        groups = RowGroups.of(self.files, IMAGES_AT_ONCE)
        for index in np.random.default_rng(seed).permutation(len(groups.rows)):
            if limit <= 0:
                return
            piece = groups.piece(index, 0, int(groups.rows[index]))
            table = read_range(piece, self.filesystem)
            images = torch.tensor(_array(table["image"]))[:limit]
            limit -= len(images)
            yield images

    def groups(self, row_bytes: int) -> RowGroups:
        """What `stream` puts in another order, READ_BYTES each."""
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
                    ahead.append(pool.submit(self._read, piece))
                    if len(ahead) > AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, piece: RowRange) -> Batch:
        if isinstance(self.filesystem, fs.LocalFileSystem) and not Path(piece.path).exists():
            raise FileNotFoundError(f"{piece.path} is not on this machine")
        return to_batch(read_range(piece, self.filesystem, self._footer(piece.path)), self.told)

    @property
    def columns(self) -> list[str]:
        """What a batch is made of, as far as a file has it."""
        return [*COLUMNS, *(() if self.told is None else (self.told.column,))]

    def texts(self, most: int) -> Iterator[list[str]]:
        """The words of the first files, of about `most` images; nothing if there are none."""
        for file in self.files:
            if most <= 0:
                return
            with _opened(file.path, self.filesystem) as table:
                if "words" in table.schema_arrow.names:
                    yield table.read(columns=["words"])["words"].to_pylist()
            most -= file.rows

    @cached_property
    def _footer(self) -> Callable[[str], pq.FileMetaData]:
        """The footer of the file at a path, read once."""

        @lru_cache(FOOTERS)
        def footer(path: str) -> pq.FileMetaData:
            with _opened(path, self.filesystem) as file:
                return file.metadata

        return footer

    def _tables(self, columns: list[str]) -> list[pa.Table]:
        """All rows of each file, read by threads: Ray Data would take seconds to start."""

        def read(file: ShardFile) -> pa.Table:
            with _opened(file.path, self.filesystem) as table:
                return table.read(columns=columns)

        return in_threads(read, self.files)

    def _join(self, batches: list[Batch]) -> Batch:
        if not batches:
            raise UserError(
                "the data have no image in a split that this stage needs; see data.valid_fraction and "
                "data.test_fraction"
            )
        return Batch.cat(batches)


def write_list(filesystem: fs.FileSystem, root: str, rows: Mapping[str, Mapping[str, int]]) -> None:
    """What `Parses.of_split` reads. rows: split -> path below `root` -> rows of the file."""
    write_text(filesystem, f"{root}/{LIST}", json.dumps(rows))


def _ids(tables: list[pa.Table]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for table in tables for chunk in table["id"].chunks], pa.string())


def _id_order(tables: list[pa.Table]) -> NDArray[np.int64]:
    return pc.sort_indices(_ids(tables)).to_numpy().astype(np.int64)


def to_batch(table: pa.Table, told: Told | None = None) -> Batch:
    """image, whether, where and what in their types on disk. T is 0 if the table has no steps."""
    images = torch.tensor(_array(table["image"]))
    condition = () if told is None else (told.read(table),)
    if "whether" not in table.column_names:
        return Batch.of(images, PartSequence.empty(len(images)), *condition)
    whether, where, what = (torch.tensor(_array(table[name])) for name in COLUMNS[1:])
    return Batch(images, whether, where, what, *condition)


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists or tensors as one array: (N, T) or (N, C, H, W)."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # extension arrays stay chunked in some releases
        whole = pa.concat_arrays(whole.chunks)
    if isinstance(whole.type, pa.FixedShapeTensorType):
        flat = whole.storage.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(whole), *whole.type.shape)
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(len(whole), whole.type.list_size)
