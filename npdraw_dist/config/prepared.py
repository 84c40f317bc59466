"""The manifest of a folder that `npdraw prepare` wrote, and the sizes that nobody has to repeat therefore.

pyarrow takes a moment to import, and few commands need it here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npdraw_dist.config.registry import SOURCES
from npdraw_dist.core.errors import UserError

if TYPE_CHECKING:
    from pyarrow import fs

SIZES = ("channels", "image_size")
MANIFEST = "manifest.json"
MAKER = "npdraw_dist.prepare"


@dataclass(frozen=True)
class Prepared:
    """shape: (C, H, W) of the images. splits: the number of images of each, also of empty ones.

    checksums: file below the folder -> (bytes, SHA-256). rows: file -> its rows. row_group: rows of a row
    group of the Parquet files; None for tars. classes: names of the labels, in order, if known.
    """

    shape: tuple[int, int, int]
    splits: dict[str, int]
    checksums: dict[str, tuple[int, str]]
    rows: dict[str, int]
    row_group: int | None = None
    classes: tuple[str, ...] = ()

    def row_groups(self, file: str, size: int) -> list[int] | None:
        """The rows of each row group of a file of `size` bytes; None if the manifest does not tell."""
        if self.row_group is None or self.checksums.get(file, (None, ""))[0] != size:
            return None
        whole, rest = divmod(self.rows[file], self.row_group)
        return [self.row_group] * whole + ([rest] if rest else [])


def read_prepared(filesystem: "fs.FileSystem", folder: str) -> Prepared | None:
    """The manifest of `folder`; None if it holds none of ours. Raises UserError if damaged."""
    from npdraw_dist.core.storage import display_path, is_file, read_bytes

    path = f"{folder}/{MANIFEST}"
    if not is_file(filesystem, path):
        return None
    try:
        values = json.loads(read_bytes(filesystem, path))
        if values.get("maker") != MAKER:
            return None
        channels, height, width = map(int, values["shape"])
        return Prepared(
            (channels, height, width),
            {split: int(values["splits"][split]) for split in ("train", "valid", "test")},
            {str(item["file"]): (int(item["bytes"]), str(item["sha256"])) for item in values["files"]},
            {str(item["file"]): int(item["rows"]) for item in values["files"]},
            int(values["row_group"]) if "row_group" in values else None,
            tuple(map(str, values.get("data", {}).get("classes", ()))),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = display_path(filesystem, path)
        raise UserError(f"{shown} is damaged ({error}); run `npdraw prepare` again") from None


def with_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings; those of `data` with sizes from the manifest in data.path where they are not given.

    A size that is given stays: the source refuses it where it opens the data. Raises UserError if data.path
    cannot be read.
    """
    data = values.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("path"), str):
        return dict(values)
    source = SOURCES.get(str(data.get("source")))
    given = {name: data[name] for name in SIZES if data.get(name) is not None}
    if source is None or not source.prepared or len(given) == len(SIZES):
        return dict(values)

    from npdraw_dist.core.storage import open_filesystem

    try:
        found = read_prepared(*open_filesystem(data["path"]))
    except OSError as error:
        raise UserError(f"cannot read data.path {data['path']}: {error}") from None
    stated = {} if found is None else dict(zip(SIZES, found.shape, strict=False))
    return {**values, "data": {**data, **stated, **given}}
