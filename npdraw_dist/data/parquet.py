"""Encodes and reads a run's Parquet files: canonical shards of images, and their parses in the same order.

Columns of images: id string, image fixed-size binary of C * H * W bytes, label int64 (-1 unknown), split
string, and words string if any image has words. The schema's metadata states the shape. Columns of parses:
id, whether, where and what as lists of T entries, squared_error float32 (mean over channels and pixels of the
canvas).
Shapes: N images, C channels, H x W pixels, T steps.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.rows import Rows
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import is_object_store, require_readable

ROW_GROUP_BYTES = 1 << 20  # bytes of the images in a row group of a file
HUGGING_FACE = b"huggingface"  # key in a schema's metadata; `datasets` stores names of classes there
SHAPE = b"shape"  # key in a schema's metadata, with the value [C, H, W]
Z = ("whether", "where", "what")
WRONG = "is no readable shard of the run ({}); delete its folder and run the stage again"


def rows_a_group(shape: tuple[int, int, int]) -> int:
    """The number of rows in a row group if images have this shape. The last group can have fewer."""
    return max(ROW_GROUP_BYTES // math.prod(shape), 1)


def digest_of(rows: Rows) -> int:
    """The sum modulo 2**128 of the rows' hashes (id, image, label, words), independent of their order."""
    total = 0
    words = rows.words or [""] * len(rows)
    for name, image, label, text in zip(rows.ids, rows.images, rows.known_labels(), words, strict=True):
        digest = hashlib.blake2b(f"{name}\0{label}\0{text}\0".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image).data)
        total += int.from_bytes(digest.digest(), "big")
    return total % 2**128


def images_to_parquet(rows: Rows, split: str, classes: Sequence[str] = ()) -> bytes:
    """Encodes a canonical shard's file. classes: names of the labels, which are stored as in `datasets`."""
    shape = rows.images.shape[1:]
    size, pixels = math.prod(shape), pa.py_buffer(np.ascontiguousarray(rows.images))
    columns: dict[str, Any] = {
        "id": pa.array(rows.ids, pa.string()),
        "image": pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(rows), [None, pixels]),
        "label": rows.known_labels(),
        "split": pa.array([split] * len(rows), pa.string()),
    }
    if rows.words is not None:
        columns["words"] = pa.array(rows.words, pa.string())
    metadata = {SHAPE: json.dumps(shape)}
    if classes:
        features = {"label": {"names": list(classes), "_type": "ClassLabel"}}
        metadata[HUGGING_FACE] = json.dumps({"info": {"features": features}})
    return _written(pa.table(columns).replace_schema_metadata(metadata), rows_a_group(shape))


def parses_to_parquet(
    ids: Sequence[str], z: PartSequence, squared_error: NDArray[np.float32], row_group: int
) -> bytes:
    """Encodes the file of a shard's parses z (N, T). where and what are 0 at steps with whether = 0."""
    z = z.to("cpu").canonical()
    columns = {
        "id": pa.array(ids, pa.string()),
        **{name: _lists(getattr(z, name).numpy()) for name in Z},
        "squared_error": np.asarray(squared_error, np.float32),
    }
    return _written(pa.table(columns), row_group)


def _written(table: pa.Table, row_group: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group, compression="zstd")
    return buffer.getvalue()


def _lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, T) -> N lists of T entries. int64 entries are converted to an `index_type`."""
    if rows.dtype == np.int64:
        rows = rows.astype(index_type(int(rows.max(initial=0))))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def index_type(largest: int) -> type[np.int16] | type[np.int32]:
    """The integer type of *where* and *what* on disk, for values up to `largest`."""
    return np.int16 if largest < 2**15 else np.int32


@contextmanager
def opened(
    path: str,
    filesystem: fs.FileSystem,
    footer: pq.FileMetaData | None = None,
    wrong: str = WRONG,
) -> Iterator[pq.ParquetFile]:
    """Yields a Parquet file. footer: the footer of the file, if known.

    Raises UserError, with the message `wrong`, if the file is missing or damaged, even if only the `with`
    block reads the damaged part.
    """
    # A store gets one request for all columns, since each has latency. On a disk this would be a copy more.
    far = not isinstance(filesystem, fs.LocalFileSystem)
    with (
        _readable(path, filesystem, wrong),
        pq.ParquetFile(path, filesystem=filesystem, pre_buffer=far, metadata=footer) as file,
    ):
        yield file


def read_whole(path: str, filesystem: fs.FileSystem, size: int) -> pa.Table:
    """All rows of a file. size: its bytes. Raises UserError as `opened` does."""
    if not is_object_store(filesystem):
        with opened(path, filesystem) as file:
            return file.read()
    # A known size saves a store a request; on a disk, this way would take twice the time.
    with _readable(path, filesystem, WRONG):
        shard = ds.ParquetFileFormat().make_fragment(path, filesystem, file_size=size)
        return shard.to_table(use_threads=False)


@contextmanager
def _readable(path: str, filesystem: fs.FileSystem, wrong: str) -> Iterator[None]:
    """Turns an error of the block, which reads `path`, into a UserError with the message `wrong`."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        if not isinstance(error, FileNotFoundError):
            require_readable(filesystem, path)
        raise UserError(f"{path} {wrong.format(error)}") from None


def images_of(table: pa.Table) -> NDArray[np.uint8]:
    """The images of a canonical shard, (N, C, H, W) and read-only."""
    shape = json.loads(table.schema.metadata[SHAPE])
    size, chunks = math.prod(shape), list[NDArray[np.uint8]]()
    for chunk in table["image"].chunks:
        pixels = np.frombuffer(chunk.buffers()[1], np.uint8)
        chunks.append(pixels[size * chunk.offset : size * (chunk.offset + len(chunk))])
    flat = chunks[0] if len(chunks) == 1 else np.concatenate([np.zeros(0, np.uint8), *chunks])
    return flat.reshape(-1, *shape)


def lists_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """The entries (N, T) of a column of N lists of T."""
    length = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    kind = np.dtype(column.type.value_type.to_pandas_dtype())
    return np.concatenate([np.zeros(0, kind), *parts]).reshape(-1, length)


def rows_of(table: pa.Table) -> Rows:
    """The rows of a canonical shard."""
    words = table["words"].to_pylist() if "words" in table.column_names else None
    labels = table["label"].to_numpy().astype(np.int64)
    return Rows(table["id"].to_pylist(), images_of(table), labels, words=words)


def class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names of the labels that the schema of a Parquet file states; () if it states none."""
    try:
        stated = json.loads((schema.metadata or {})[HUGGING_FACE])["info"]["features"]["label"]["names"]
        return tuple(map(str, stated))
    except (KeyError, TypeError, ValueError):
        return ()
