"""The manifest of a folder that `npdraw_dist.prepare` wrote: what those who read the folder need to know."""

import json
from dataclasses import dataclass

from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, read_bytes

MANIFEST = "manifest.json"
MAKER = "npdraw_dist.prepare"


@dataclass(frozen=True)
class Prepared:
    """shape: (C, H, W) of the images. splits: the number of images of each, also of empty ones.

    checksums: file -> (bytes, SHA-256); files are relative to the folder. rows: file -> its rows. row_group:
    rows of a row group of the Parquet files; None if not stated, as by older versions, and for tars.
    """

    shape: tuple[int, int, int]
    splits: dict[str, int]
    checksums: dict[str, tuple[int, str]]
    rows: dict[str, int]
    row_group: int | None = None

    def row_groups(self, file: str, size: int) -> list[int] | None:
        """The rows of each row group of a file of `size` bytes; None if the manifest does not tell."""
        if self.row_group is None or self.checksums.get(file, (None, ""))[0] != size:
            return None
        whole, rest = divmod(self.rows[file], self.row_group)
        return [self.row_group] * whole + ([rest] if rest else [])


def read_prepared(filesystem: fs.FileSystem, folder: str) -> Prepared | None:
    """The manifest of `folder`; None if it holds none of ours. Raises UserError if damaged."""
    path = f"{folder}/{MANIFEST}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    try:
        values = json.loads(read_bytes(filesystem, path))
        if values.get("maker") != MAKER:
            return None
        channels, height, width = values["shape"]
        return Prepared(
            (int(channels), int(height), int(width)),
            {split: int(values["splits"][split]) for split in ("train", "valid", "test")},
            {str(item["file"]): (int(item["bytes"]), str(item["sha256"])) for item in values["files"]},
            {str(item["file"]): int(item["rows"]) for item in values["files"]},
            int(values["row_group"]) if "row_group" in values else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = display_path(filesystem, path)
        raise UserError(f"{shown} is damaged ({error}); run npdraw_dist.prepare again") from None
