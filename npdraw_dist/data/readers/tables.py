"""Parquet: a column `image`, and optionally `id`, `label`, `split`, `shape` and `words` or `caption`.

`image` is a fixed-shape tensor, a list (with the column `shape`, or of C * H * W values), or the
bytes of a PNG or JPEG (alone, or in a struct with the field `bytes` as Hugging Face writes it).
Numbers are uint8, or floats in [0, 1].
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pictures import BadPicture, Frame, from_array, read_picture
from npdraw_dist.core.storage import in_threads, list_files, open_filesystem, require_readable
from npdraw_dist.data.parquet import class_names
from npdraw_dist.data.rows import RowBuilder, Rows, frame_of
from npdraw_dist.data.shards import FilePart, Source, file_splits, join_small, of_files, packed
from npdraw_dist.data.splits import SPLITS, HashSplit, Split, stated_split

COLUMNS = ("id", "image", "label", "split", "shape", "words", "caption")


@contextmanager
def _opened(filesystem: fs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """Raises UserError if the file, or what is read of it in the block, is damaged."""
    try:
        with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True) as file:  # one wait for all columns
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        require_readable(filesystem, path)
        raise UserError(f"{path} is no readable Parquet file ({error}); write it again") from None


def _footer(filesystem: fs.FileSystem, path: str) -> tuple[list[int], bool, tuple[str, ...]]:
    """The rows of each row group, whether there is a column split, and the names of the labels, if stated.

    Raises UserError if the file is damaged, or its columns cannot be images.
    """
    with _opened(filesystem, path) as file:
        schema, metadata = file.schema_arrow, file.metadata
    if "image" not in schema.names:
        raise UserError(
            f"{path} has no column image (it has {', '.join(schema.names)}); rename the one that is"
        )
    kind = schema.field("image").type
    if not (_is_bytes(kind) or _is_numbers(kind)):
        raise UserError(f"{path}: the column image is {kind}; it must be a tensor, a list or encoded bytes")
    if "label" in schema.names and not pa.types.is_integer(schema.field("label").type):
        raise UserError(f"{path}: the column label is {schema.field('label').type}; it must be an integer")
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return sizes, "split" in schema.names, class_names(schema)


def _is_bytes(kind: pa.DataType) -> bool:
    in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return in_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_numbers(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedShapeTensorType | pa.ListType | pa.LargeListType | pa.FixedSizeListType)


@dataclass(frozen=True)
class TableReader:
    """Reads the rows of one split in some row groups of a file.

    first: number of the first row in the file, part of the id if there is no column `id`.
    """

    filesystem: fs.FileSystem
    path: str
    name: str
    groups: tuple[int, ...]
    first: int
    frame: Frame
    rule: HashSplit
    stated: Split | None

    def read(self, split: Split) -> Rows:
        with _opened(self.filesystem, self.path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            table = file.read_row_groups(self.groups, columns=columns)
        if (rows := self._as_written(table, split)) is not None:
            return rows
        builder = RowBuilder(self.frame.shape)
        for number, (own, image, label, word, shape, *texts) in enumerate(_cells(table), self.first):
            name = f"{self.name}-{number:06d}" if own is None else str(own)
            stated = stated_split(word)
            if not self.rule.keeps(name, split, stated or self.stated):
                continue
            if word is not None and stated is None:
                builder.reject(name, f"split {word!r} is none of train, valid and test")
            else:
                text = next((str(text) for text in texts if text), "")
                read = partial(self._image, image, shape)
                builder.add(name, -1 if label is None else int(label), read, text)
        return builder.rows()

    def _as_written(self, table: pa.Table, split: Split) -> Rows | None:
        """All rows at once, where the images are tensors as they are to be; None where each needs a look."""
        names, as_is = set(table.schema.names), pa.fixed_shape_tensor(pa.uint8(), self.frame.shape)
        if table.schema.field("image").type != as_is or "id" not in names or {"split", "shape"} & names:
            return None
        texts = [name for name in ("words", "caption") if name in names]
        if len(texts) > 1 or not all(pa.types.is_string(table.schema.field(name).type) for name in texts):
            return None
        if "label" in names and (
            not pa.types.is_signed_integer(table.schema.field("label").type)
            or (pc.min(table["label"]).as_py() or 0) < -1
        ):
            return None
        images = [chunk.storage for chunk in table["image"].chunks]
        if table["image"].null_count or table["id"].null_count or any(i.flatten().null_count for i in images):
            return None
        every = [str(name) for name in table["id"].to_pylist()]
        kept = [i for i, name in enumerate(every) if self.rule.keeps(name, split, self.stated)]
        if not kept or len(set(every)) < len(every):
            return None
        pixels = np.concatenate([i.flatten().to_numpy() for i in images]).reshape(-1, *self.frame.shape)
        labels = table["label"].fill_null(-1).to_numpy().astype(np.int64) if "label" in names else None
        words = [text or "" for text in table[texts[0]].to_pylist()] if texts else None
        return Rows(every, pixels, labels, words=words).take(kept)

    def _image(self, value: pa.Scalar, shape: list[int] | None) -> NDArray[np.uint8]:
        if not value.is_valid:
            raise BadPicture("no image")
        kind = value.type
        if _is_bytes(kind):
            content = value["bytes"].as_py() if pa.types.is_struct(kind) else value.as_py()
            return read_picture(content or b"", self.frame)
        if isinstance(kind, pa.FixedShapeTensorType):
            return from_array(self._tensor(value.value.values, kind), self.frame)
        if value.values.null_count:
            raise BadPicture("an empty value in the list")
        numbers = value.values.to_numpy(zero_copy_only=False)
        sides = tuple(shape or self.frame.shape)
        if len(numbers) != int(np.prod(sides)):
            raise BadPicture(f"{len(numbers)} values, which do not fill the shape {sides}")
        return from_array(numbers.reshape(sides), self.frame)

    def _tensor(self, values: pa.Array, kind: pa.FixedShapeTensorType) -> NDArray[Any]:
        """A tensor of any shape; one of three axes has its channels first or last."""
        if values.null_count:
            raise BadPicture("an empty value in the tensor")
        stored = values.to_numpy(zero_copy_only=False).reshape(kind.shape)
        if kind.permutation is None:
            return stored
        logical = stored.transpose(kind.permutation)
        if logical.ndim == 3 and self.frame.shape[0] not in (logical.shape[0], logical.shape[2]):
            # pyarrow 26 writes the inverse permutation for an array that is not in row-major order.
            return stored.transpose(np.argsort(kind.permutation))
        return logical


def _cells(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The values of COLUMNS in each row, None where there are none; the image as a scalar of Arrow's."""
    for batch in table.to_batches():
        own = {name: batch[name].to_pylist() for name in batch.schema.names if name != "image"}
        columns = {**dict.fromkeys(COLUMNS, [None] * len(batch)), **own, "image": batch["image"]}
        yield from zip(*columns.values(), strict=True)


def open_parquet(data: DataConfig, seed: int) -> Source:
    """Each shard has some row groups of a Parquet file, or several small files that `prepare` wrote.

    The split is the column `split`, or the folder named train, valid or test, or the file's name; else a hash
    of the id tells.
    """
    if data.path is None:
        raise UserError("data.source parquet needs --data.path: a Parquet file, or a folder or URI of them")
    filesystem, root = open_filesystem(data.path)
    sizes = {p: size for p, size in list_files(filesystem, root) if p == root or p.endswith(".parquet")}
    paths = list(sizes)
    if not paths:
        raise UserError(f"data.path {data.path} is missing or has no .parquet file")
    layout = file_splits(data, filesystem, paths, None if paths == [root] else root)
    parts, frame, prepared = [], frame_of(data), layout.prepared

    def footer(path: str) -> tuple[list[int], bool, tuple[str, ...]]:
        groups = None if prepared is None else prepared.row_groups(path[len(root) + 1 :], sizes[path])
        return (groups, False, ()) if groups is not None else _footer(filesystem, path)

    footers = in_threads(footer, paths)
    for path, (of_groups, own_column, _) in zip(paths, footers, strict=True):
        stated = layout.stated[path]
        rule = HashSplit.of(data, seed, SPLITS if own_column else layout.own)
        splits = SPLITS if own_column else rule.possible(stated)
        name = path.rpartition("/")[2] if path == root else path[len(root) + 1 :]
        rows_before = [0, *accumulate(of_groups)]
        for start, stop in packed(of_groups, data.rows_a_shard):
            groups, first = tuple(range(start, stop)), rows_before[start]
            reader = TableReader(filesystem, path, name, groups, first, frame, rule, stated)
            parts.append(FilePart(splits, reader.read, rows_before[stop] - first))
    if prepared is not None:  # its ids are known to differ
        parts = join_small(parts, data.rows_a_shard)
    classes = footers[0][2] if prepared is None else prepared.classes
    return of_files(data, seed, parts, layout.counts, layout.inputs, classes)
