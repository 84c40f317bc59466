"""The Parquet file of a shard of images, with their parses or without; `data.parses` names its columns.

Shapes: N images, C channels, H x W pixels, T steps.
"""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.rows import Rows

ROW_GROUP_BYTES = 1 << 20  # of images in a row group of a file
HUGGING_FACE = b"huggingface"  # key of a schema's metadata, in which `datasets` names classes


def image_column(images: NDArray[np.uint8]) -> pa.ExtensionArray:
    """(N, C, H, W) uint8 -> N fixed-shape tensors; works for N = 0."""
    storage = _lists(images.reshape(len(images), int(np.prod(images.shape[1:]))))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), images.shape[1:]), storage)


def _lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, T) -> N lists of T; int64 is narrowed to an `index_type`."""
    if rows.dtype == np.int64:
        rows = rows.astype(index_type(int(rows.max(initial=0))))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def index_type(largest: int) -> type[np.int16] | type[np.int32]:
    """The type of *where* and *what* on disk, if no value is above `largest`."""
    return np.int16 if largest < 2**15 else np.int32


def class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names of the labels that the schema of a Parquet file states; () if none."""
    try:
        stated = json.loads((schema.metadata or {})[HUGGING_FACE])["info"]["features"]["label"]["names"]
        return tuple(map(str, stated))
    except (KeyError, TypeError, ValueError):
        return ()


def to_parquet(
    rows: Rows,
    z: PartSequence | None = None,
    squared_error: NDArray[np.float32] | None = None,
    row_group: int | None = None,
    classes: Sequence[str] = (),
) -> bytes:
    """The file of a shard: its rows with their parses z (N, T) and squared_error (N,), or without.

    where and what are stored as 0 where whether is 0. row_group: rows of each, by ROW_GROUP_BYTES if None.
    classes: names of the labels, which the schema then states as Hugging Face's `datasets` does.
    """
    columns: dict[str, Any] = {
        "id": pa.array(rows.ids, pa.string()),
        "image": image_column(rows.images),
        "label": rows.known_labels(),
    }
    if rows.words is not None:
        columns["words"] = pa.array(rows.words, pa.string())
    if z is not None:
        z = z.to("cpu").canonical()
        columns |= {
            "whether": _lists(z.whether.numpy()),
            "where": _lists(z.where.numpy()),
            "what": _lists(z.what.numpy()),
            "squared_error": np.asarray(squared_error, np.float32),
        }
    buffer = io.BytesIO()
    size = row_group or max(ROW_GROUP_BYTES // math.prod(rows.images.shape[1:]), 1)
    table = pa.table(columns)
    if classes:
        features = {"label": {"names": list(classes), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({HUGGING_FACE: json.dumps({"info": {"features": features}})})
    pq.write_table(table, buffer, row_group_size=size, compression="zstd")
    return buffer.getvalue()
