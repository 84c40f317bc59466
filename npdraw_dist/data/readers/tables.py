"""Reads Parquet files with a column `image`.

Optional columns are `id`, `label`, `split`, `shape`, and `words` or `caption`.
`image` is a fixed-shape tensor; a list of values, whose shape is the column `shape` or else (C, H, W); the
bytes of a PNG or JPEG (alone, or as the field `bytes` of a struct, as Hugging Face writes them); or the
fixed-size binary of a canonical shard, whose schema states the shape. Values are uint8, or floats in [0, 1].
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import BadPicture, Frame, from_array, read_picture
from npdraw_dist.data.parquet import SHAPE, class_names, opened
from npdraw_dist.data.rows import RowBuilder, Rows, frame_of
from npdraw_dist.data.shards import Canonical, Part, Source, file_splits, of_files, packed, require_shape
from npdraw_dist.data.splits import SPLITS, HashSplit, Split, stated_split
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import in_threads, list_files, open_filesystem

COLUMNS = ("id", "image", "label", "split", "shape", "words", "caption")
LISTS = (pa.FixedShapeTensorType, pa.ListType, pa.LargeListType, pa.FixedSizeListType)
NO_TABLE = "is no readable Parquet file ({}); write it again"


def _footer(filesystem: fs.FileSystem, path: str) -> tuple[list[int], bool, tuple[str, ...]]:
    """The number of rows of each row group, whether there is a column `split`, and the stated label names.

    Raises UserError if the file is damaged, or if its column `image` or `label` has an unusable type.
    """
    with opened(path, filesystem, wrong=NO_TABLE) as file:
        schema, metadata = file.schema_arrow, file.metadata
    if "image" not in schema.names:
        raise UserError(
            f"{path} has no column image (it has {', '.join(schema.names)}); rename the column of the images"
        )
    kind = schema.field("image").type
    raw = pa.types.is_fixed_size_binary(kind) and SHAPE in (schema.metadata or {})
    if not (raw or _is_bytes(kind) or isinstance(kind, LISTS)):
        raise UserError(f"{path}: the column image is {kind}; it must be a tensor, a list or encoded bytes")
    if "label" in schema.names and not pa.types.is_integer(schema.field("label").type):
        raise UserError(f"{path}: the column label is {schema.field('label').type}; it must be an integer")
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return sizes, "split" in schema.names, class_names(schema)


def _is_bytes(kind: pa.DataType) -> bool:
    in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return in_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@dataclass(frozen=True)
class TableReader:
    """Reads the rows of the requested splits from some row groups of a file.

    first: position of the first of these rows in the file. A row without an `id` gets its id from `name`
    and its position. stated: the split that the file's folder or name states, or None.
    """

    filesystem: fs.FileSystem
    path: str
    name: str
    groups: tuple[int, ...]
    first: int
    frame: Frame
    rule: HashSplit
    stated: Split | None

    def __call__(self, wanted: Collection[Split]) -> dict[Split, Rows]:
        with opened(self.path, self.filesystem, wrong=NO_TABLE) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            table = file.read_row_groups(self.groups, columns=columns)
        own_shape = json.loads((table.schema.metadata or {}).get(SHAPE, b"null"))
        builders: dict[Split | None, RowBuilder] = {split: RowBuilder(self.frame.shape) for split in wanted}
        for number, (own, image, label, word, shape, *texts) in enumerate(_cells(table), self.first):
            name = f"{self.name}-{number:06d}" if own is None else str(own)
            stated = stated_split(word)
            builder = builders.get(self.rule.kept_in(name, stated or self.stated))
            if builder is None:
                continue
            if word is not None and stated is None:
                builder.reject(name, f"split {word!r} is none of train, valid and test")
            else:
                text = next((str(text) for text in texts if text), "")
                read = partial(self._image, image, shape or own_shape)
                builder.add(name, -1 if label is None else int(label), read, text)
        return {split: builders[split].rows() for split in wanted}

    def _image(self, value: pa.Scalar, shape: list[int] | None) -> NDArray[np.uint8]:
        if not value.is_valid:
            raise BadPicture("no image")
        kind = value.type
        if _is_bytes(kind):
            content = value["bytes"].as_py() if pa.types.is_struct(kind) else value.as_py()
            return read_picture(content or b"", self.frame)
        if pa.types.is_fixed_size_binary(kind):
            return from_array(np.frombuffer(value.as_py(), np.uint8).reshape(shape), self.frame)
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
        """The array of a tensor of any shape. If it has three axes, the channels are first or last."""
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
    """Yields each row's values of COLUMNS, with None for a missing one, and the image as an Arrow scalar."""
    for batch in table.to_batches():
        own = {name: batch[name].to_pylist() for name in batch.schema.names if name != "image"}
        columns = {**dict.fromkeys(COLUMNS, [None] * len(batch)), **own, "image": batch["image"]}
        yield from zip(*columns.values(), strict=True)


def open_parquet(data: DataConfig, seed: int) -> Source:
    """Opens Parquet files. A part of the source is some row groups of a file, or a whole canonical shard.

    The column `split`, the folder or the name of the file states the split of a row; otherwise a hash of the
    id determines it.
    """
    if data.path is None:
        raise UserError("data.source parquet needs --data.path: a Parquet file, or a folder or URI of them")
    filesystem, root = open_filesystem(data.path)
    canonical = Canonical.at(filesystem, root)
    if canonical is not None:
        require_shape(data, canonical.manifest)
        if data.fraction == 1 and (canonical.manifest.splits.get("valid") or data.valid_fraction == 0):
            return canonical.source(data, seed)
    paths = [path for path, _ in list_files(filesystem, root) if path == root or path.endswith(".parquet")]
    if not paths:
        raise UserError(f"data.path {data.path} is missing or has no .parquet file")
    layout = file_splits(data, filesystem, paths, None if paths == [root] else root)
    parts, frame = [], frame_of(data)
    footers = in_threads(partial(_footer, filesystem), paths)
    for path, (of_groups, own_column, _) in zip(paths, footers, strict=True):
        stated = layout.stated[path]
        own_column = own_column and layout.prepared is None
        rule = HashSplit.of(data, seed, SPLITS if own_column else layout.own)
        splits = SPLITS if own_column else rule.possible(stated)
        name = path.rpartition("/")[2] if path == root else path[len(root) + 1 :]
        rows_before = [0, *accumulate(of_groups)]
        for start, stop in packed(of_groups, data.rows_a_shard):
            groups, first = tuple(range(start, stop)), rows_before[start]
            read = TableReader(filesystem, path, name, groups, first, frame, rule, stated)
            parts.append(Part(splits, read))
    stamp = layout.stamp if canonical is None else canonical.manifest.digest
    return of_files(data, seed, parts, layout.counts, stamp, footers[0][2])
