"""Parses on disk: Parquet with one row per image, readable by pyarrow, Ray Data and any other reader.

Columns: id string, image fixed-shape tensor of uint8, label int64 (-1 unknown), whether, where and
what as lists of T entries, squared_error float32 (mean over channels and pixels of the canvas). The shards
of a baseline, which draws no parts, have the first three columns only.
Shapes: N images, C channels, H x W pixels, T steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import write_beside

COLUMNS = ("id", "image", "label", "whether", "where", "what", "squared_error")
ROW_GROUP = 1024


def image_column(images: NDArray[np.uint8]) -> pa.ExtensionArray:
    """(N, C, H, W) uint8 -> N fixed-shape tensors; works for N = 0."""
    storage = _lists(images.reshape(len(images), int(np.prod(images.shape[1:]))))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), images.shape[1:]), storage)


def _lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, T) -> N lists of T."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _narrow(rows: NDArray[np.int64]) -> NDArray[Any]:
    """The same integers as int16 where they fit, else int32."""
    small = rows.size == 0 or int(rows.max()) < 2**15
    return rows.astype(np.int16 if small else np.int32)


def write_parses(
    path: str,
    filesystem: fs.FileSystem,
    ids: Sequence[str],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    z: PartSequence | None,
    squared_error: NDArray[np.float32],
) -> None:
    """Writes one shard of parses: images (N, C, H, W) uint8, z (N, T) or none, squared_error (N,).

    `path` appears whole or not at all. where and what are stored as 0 where whether is 0.
    """
    columns: dict[str, Any] = {
        "id": pa.array(ids, pa.string()),
        "image": image_column(images),
        "label": np.full(len(ids), -1, np.int64) if labels is None else labels,
    }
    if z is not None:
        z = z.to("cpu").canonical()
        columns |= {
            "whether": _lists(z.whether.numpy()),
            "where": _lists(_narrow(z.where.numpy())),
            "what": _lists(_narrow(z.what.numpy())),
            "squared_error": np.asarray(squared_error, np.float32),
        }
    table = pa.table(columns)
    write_beside(
        filesystem,
        path,
        lambda stream: pq.write_table(table, stream, row_group_size=ROW_GROUP, compression="zstd"),
    )


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as one array: (N,), (N, T) or (N, C, H, W)."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # extension arrays stay chunked in some releases
        whole = pa.concat_arrays(whole.chunks)
    if isinstance(whole.type, pa.FixedShapeTensorType):
        flat = whole.storage.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(whole), *whole.type.shape)
    if pa.types.is_fixed_size_list(whole.type):
        flat = whole.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(whole), whole.type.list_size)
    return whole.to_numpy(zero_copy_only=False)


def to_arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    """The columns of a table of parses (or of some of them) as arrays; id is an array of strings."""
    return {name: _array(table[name]) for name in table.column_names}


def read_parses(path: str, filesystem: fs.FileSystem) -> dict[str, NDArray[Any]]:
    """One shard, by column. Raises UserError where it is missing, damaged or another table."""
    try:
        table = pq.read_table(path, filesystem=filesystem)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path} is no readable shard of parses ({error}); run the stage `parse` again"
        ) from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; run the stage `parse` again")
    return to_arrays(table.select(COLUMNS))


def _stacked(values: NDArray[Any]) -> NDArray[Any]:
    """Ray Data gives a list column as an object array of arrays."""
    return np.stack(list(values)) if values.dtype == object else values


def to_columns(batch: Mapping[str, NDArray[Any]] | pa.Table) -> tuple[NDArray[np.uint8], PartSequence]:
    """images (N, C, H, W) uint8 and z (N, T) of a batch: arrays of Ray Data or `read_parses`, or a table.

    T is 0 where the batch has no steps.
    """
    arrays = to_arrays(batch) if isinstance(batch, pa.Table) else batch
    if "whether" not in arrays:
        images = _stacked(arrays["image"])
        return images, PartSequence.empty(len(images))
    whether, where, what = (_stacked(arrays[name]) for name in ("whether", "where", "what"))
    z = PartSequence(
        torch.from_numpy(whether.astype(bool)),
        torch.from_numpy(where.astype(np.int64)),
        torch.from_numpy(what.astype(np.int64)),
    )
    return _stacked(arrays["image"]), z
