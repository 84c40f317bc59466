"""Parses on disk: Parquet with one row per image, readable by pyarrow, Ray Data and any other reader.

Columns: id string, image fixed-shape tensor of uint8, label int64 (-1 unknown), whether, where and
what as lists of T entries, squared_error float32 (mean over channels and pixels of the canvas). The shards
of a baseline, which has no parts, have the first three columns only.
Shapes: N images, C channels, H x W pixels, T steps.
"""

import io
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch, PartSequence
from npdraw_dist.core.process import ray_runs
from npdraw_dist.core.storage import read_bytes, write_text
from npdraw_dist.data.row_ranges import (
    READERS,
    RowGroups,
    RowRange,
    read_in_task,
    read_range,
    read_ranges,
)
from npdraw_dist.data.rows import Rows

ROW_GROUP = 256  # rows that are read and shuffled as one; more mix sorted data worse
COLUMNS = ["image", "whether", "where", "what"]  # fields of a Batch
READ_ROWS = 16 * ROW_GROUP  # rows of one read, so that a large shard is not one large block
LIST = "files.json"
MOST_IDS = 1 << 20  # `sample` chooses from so many
TASKS = 2  # read tasks at once for each rank
STORE_BYTES = 128 << 20  # each rank's share of Ray's object store


@dataclass(frozen=True)
class ShardFile:
    """A Parquet file of parses. rows: as its metadata says."""

    path: str
    rows: int


@dataclass(frozen=True)
class Parses:
    """The parses of one split: the rows of some Parquet files, one file after another.

    Every method reads from the files; only their names and numbers of rows are in memory. All raise
    UserError if a file is damaged.
    """

    filesystem: fs.FileSystem
    files: tuple[ShardFile, ...]

    @classmethod
    def of_split(cls, filesystem: fs.FileSystem, root: str, split: str) -> "Parses":
        """The files of a split in the folder `root` of the stage, by name, from the list that it wrote."""
        path = f"{root}/{LIST}"
        try:
            names = json.loads(read_bytes(filesystem, path)).get(split, {})
        except (FileNotFoundError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); run the stage `parse` again") from None
        files = sorted((f"{root}/{name}", rows) for name, rows in names.items())
        return cls(filesystem, tuple(ShardFile(path, rows) for path, rows in files))

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def some(self, most: int, seed: int) -> "Parses":
        """At most `most` of the files, chosen by the seed, in their order."""
        if len(self.files) <= most:
            return self
        chosen = np.random.default_rng(seed).choice(len(self.files), most, replace=False)
        return self.select(np.sort(chosen).tolist())

    def select(self, order: Sequence[int]) -> "Parses":
        """The files in the given order. A file may be given more than once."""
        return replace(self, files=tuple(self.files[index] for index in order))

    def read(self, start: int, stop: int) -> Batch:
        """Rows [start, stop), in order. For rows that all stay in the memory of this process."""
        return self._join([to_batch(table) for table in self._tables(start, stop, COLUMNS)])

    def in_id_order(self) -> Batch:
        """All rows, sorted by id, so that their order does not depend on the shards."""
        tables = self._tables(0, len(self), ["id", *COLUMNS])
        whole = self._join([to_batch(table) for table in tables])
        return whole[torch.from_numpy(_id_order(tables))]

    def sample(self, limit: int, seed: int) -> Batch:
        """At most `limit` rows of all files, in random order, so that sorted data stay mixed.

        The choice and its order depend on the ids and the seed, not on the shards; but of more than
        MOST_IDS rows, only some files are looked at, chosen by the seed. Only the row groups of the chosen
        rows are read, one at a time.
        """
        if len(self) > MOST_IDS and len(self.files) > 1:
            most = max(len(self.files) * max(MOST_IDS, limit) // len(self), 1)
            if most < len(self.files):
                return self.some(most, seed).sample(limit, seed)
        order = _id_order(self._tables(0, len(self), ["id"]))
        chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))[:limit]
        return self.at(order[chosen.numpy()])

    def find(self, image_id: str) -> int | None:
        """The row of the image with this id; None if there is none. Reads the ids of all files."""
        row = pc.index(_ids(self._tables(0, len(self), ["id"])), image_id).as_py()
        return None if row < 0 else int(row)

    def at(self, rows: NDArray[np.int64]) -> Batch:
        """The given rows (n,), in the given order."""
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum([file.rows for file in self.files])
        number = np.searchsorted(ends, rows[order], side="right")  # the file of each row
        files = np.unique(number)

        def read(index: int) -> Batch:
            file = self.files[index]
            return self._of_file(file, rows[order[number == index]] - (ends[index] - file.rows))

        with ThreadPoolExecutor(READERS) as pool:
            found = self._join(list(pool.map(read, files.tolist())))
        return found[torch.from_numpy(np.argsort(order))]

    def _of_file(self, file: ShardFile, rows: NDArray[np.int64]) -> Batch:
        """The given rows (n,) of a file, which are sorted. Reads a row group at a time."""
        parts = []
        with pq.ParquetFile(file.path, filesystem=self.filesystem, pre_buffer=True) as table:
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            first = np.cumsum([0, *sizes])
            groups = np.searchsorted(first, rows, side="right") - 1
            for group in np.unique(groups):
                batch = to_batch(table.read_row_group(int(group), columns=COLUMNS))
                parts.append(batch[torch.from_numpy(rows[groups == group] - first[group])])
        return Batch.cat(parts)

    def images(self, limit: int, seed: int) -> Iterator[torch.Tensor]:
        """At most `limit` images, uint8 (M, C, H, W) each time, in row groups that are drawn by the seed.

        A row group is read at a time and no other column, so the cost is bounded for data of any size.
        """
        groups = self.groups
        for index in np.random.default_rng(seed).permutation(len(groups.rows)):
            if limit <= 0:
                return
            piece = groups.piece(index, 0, int(groups.rows[index]))
            table = read_range(piece, self.filesystem, ["image"])
            images = torch.tensor(_array(table["image"]))[:limit]
            limit -= len(images)
            yield images

    @cached_property
    def groups(self) -> RowGroups:
        """What `stream_groups` puts in another order."""
        return RowGroups.of([file.path for file in self.files], [file.rows for file in self.files], ROW_GROUP)

    def stream_groups(self, order: NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        """Rows [start, stop) of each range, counted over the row groups in `order`, read ahead.

        By Ray Data, or threads of this process where Ray does not run, in batches of READ_ROWS or less.
        `ray.data.read_parquet` keeps neither the order of the given files (it deals them to buckets) nor
        a file that is given twice, and fails if a node dies under its footer readers. So the ranges to
        read are the items of the data set and a map reads them; Ray runs its tasks again.
        """
        reads = self.groups.reads(order, ranges, READ_ROWS)
        if not reads:
            return
        if not ray_runs():
            yield from map(to_batch, self._read_ahead(reads))
            return
        import ray  # takes seconds; the other methods do without it

        from npdraw_dist.data.stream_pause import StreamPause

        items = [
            {
                "path": [piece.path for piece in pieces],
                "start": [piece.start for piece in pieces],
                "stop": [piece.stop for piece in pieces],
            }
            for pieces in reads
        ]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            read_in_task,  # type: ignore[arg-type]  # Ray's hint knows no tables
            batch_size=1,
            batch_format="numpy",
            fn_kwargs={"filesystem": self.filesystem, "columns": COLUMNS},
            compute=ray.data.TaskPoolStrategy(size=min(TASKS, len(items))),
            num_cpus=0,  # the workers of an elastic run take every CPU; they would wait for ever
        )
        context = dataset.context
        context.enable_progress_bars = context.print_on_execution_start = False
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, StreamPause]
        options = context.execution_options
        options.preserve_order = True
        options.resource_limits = options.resource_limits.copy(object_store_memory=STORE_BYTES)
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        yield from map(to_batch, tables)

    def _read_ahead(self, reads: Sequence[Sequence[RowRange]]) -> Iterator[pa.Table]:
        """The rows of each read, while threads make the next ones."""
        with ThreadPoolExecutor(TASKS) as pool:
            ahead: deque[Future[pa.Table]] = deque()
            for pieces in reads:
                ahead.append(pool.submit(read_ranges, pieces, self.filesystem, COLUMNS))
                if len(ahead) > TASKS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _ranges(self, start: int, stop: int) -> list[RowRange]:
        """The rows to read of each file, cut at multiples of READ_ROWS."""
        ranges: list[RowRange] = []
        number = max(bisect_right(self._starts, start) - 1, 0)
        while number < len(self.files) and (before := self._starts[number]) < stop:
            file = self.files[number]
            first, last = max(start - before, 0), min(stop - before, file.rows)
            while first < last:
                end = min((first // READ_ROWS + 1) * READ_ROWS, last)
                ranges.append(RowRange(file.path, first, end))
                first = end
            number += 1
        return ranges

    @cached_property
    def _starts(self) -> list[int]:
        """How many rows are before each file."""
        return list(accumulate((file.rows for file in self.files), initial=0))

    def _tables(self, start: int, stop: int, columns: list[str]) -> list[pa.Table]:
        """The columns of rows [start, stop), read by threads: Ray Data would take seconds to start."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(
                pool.map(lambda piece: read_range(piece, self.filesystem, columns), self._ranges(start, stop))
            )

    def _join(self, batches: list[Batch]) -> Batch:
        if not batches:
            raise UserError(
                "the data have no image in a split that this stage needs; see data.valid_fraction and "
                "data.test_fraction"
            )
        return Batch.cat(batches)


def write_list(filesystem: fs.FileSystem, root: str, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Writes the list that `Parses.of_split` reads. rows: split -> path below `root` -> rows of the file."""
    write_text(filesystem, f"{root}/{LIST}", json.dumps(rows))


def _id_order(tables: list[pa.Table]) -> NDArray[np.int64]:
    """(N,): the rows of all tables, sorted by id."""
    return pc.sort_indices(_ids(tables)).to_numpy().astype(np.int64)


def _ids(tables: list[pa.Table]) -> pa.ChunkedArray:
    """The ids of all tables, (N,)."""
    return pa.chunked_array([chunk for table in tables for chunk in table["id"].chunks], pa.string())


def to_batch(table: pa.Table) -> Batch:
    """image, whether, where and what in their types on disk. T is 0 if the table has no steps."""
    images = torch.tensor(_array(table["image"]))
    if "whether" not in table.column_names:
        return Batch.of(images, PartSequence.empty(len(images)))
    return Batch(images, *(torch.tensor(_array(table[name])) for name in COLUMNS[1:]))


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of lists or tensors as one array: (N, T) or (N, C, H, W)."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # extension arrays stay chunked in some releases
        whole = pa.concat_arrays(whole.chunks)
    if isinstance(whole.type, pa.FixedShapeTensorType):
        flat = whole.storage.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(whole), *whole.type.shape)
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(len(whole), whole.type.list_size)


def image_column(images: NDArray[np.uint8]) -> pa.ExtensionArray:
    """(N, C, H, W) uint8 -> N fixed-shape tensors; works for N = 0."""
    storage = _lists(images.reshape(len(images), int(np.prod(images.shape[1:]))))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), images.shape[1:]), storage)


def _lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, T) -> N lists of T."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def index_type(largest: int) -> type[np.int16] | type[np.int32]:
    """The type of *where* and *what* on disk, if no value is above `largest`."""
    return np.int16 if largest < 2**15 else np.int32


def _narrow(rows: NDArray[np.int64]) -> NDArray[Any]:
    return rows.astype(index_type(int(rows.max(initial=0))))


def to_parquet(
    rows: Rows,
    z: PartSequence | None = None,
    squared_error: NDArray[np.float32] | None = None,
    row_group: int | None = None,
) -> bytes:
    """The file of a shard: its rows with their parses z (N, T) and squared_error (N,), or without.

    where and what are stored as 0 where whether is 0. row_group: rows of each, ROW_GROUP if None.
    """
    columns: dict[str, Any] = {
        "id": pa.array(rows.ids, pa.string()),
        "image": image_column(rows.images),
        "label": rows.known_labels(),
    }
    if z is not None:
        z = z.to("cpu").canonical()
        columns |= {
            "whether": _lists(z.whether.numpy()),
            "where": _lists(_narrow(z.where.numpy())),
            "what": _lists(_narrow(z.what.numpy())),
            "squared_error": np.asarray(squared_error, np.float32),
        }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=row_group or ROW_GROUP, compression="zstd")
    return buffer.getvalue()
