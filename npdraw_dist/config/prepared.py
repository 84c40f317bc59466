"""Reads the manifest of shards that `npdraw prepare` or a run wrote. It states the sizes of the images.

Modules that use pyarrow are imported in functions, since pyarrow is slow to import and rarely needed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npdraw_dist.config.registry import SOURCES
from npdraw_dist.config.section import size_of
from npdraw_dist.system.errors import UserError

if TYPE_CHECKING:
    from pyarrow import fs

SIZES = ("channels", "image_size")
MANIFEST = "manifest.json"
MAKER = "npdraw_dist.data"  # key `maker` of a manifest that `npdraw prepare` or a run wrote


@dataclass(frozen=True)
class Prepared:
    """The content of a manifest.

    format: parquet (canonical shards) or webdataset. shape: (C, H, W) of the images. splits: written split ->
    number of images, which may be 0. files: split -> path below the folder -> number of rows. sizes: path ->
    bytes of the file. digests: split -> digest of its rows. classes: names of the labels, in order, if known.
    has_words: whether some images have words.
    """

    format: str
    shape: tuple[int, int, int]
    splits: dict[str, int]
    files: dict[str, dict[str, int]]
    sizes: dict[str, int]
    digests: dict[str, str]
    classes: tuple[str, ...] = ()
    has_words: bool = False

    @property
    def digest(self) -> str:
        """Hexadecimal digest of all rows, independent of their order, shards and splits."""
        return f"{sum(int(digest, 16) for digest in self.digests.values()) % 2**128:032x}"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Prepared":
        """Parses a manifest. Raises an error of any type if `values` are not a manifest."""
        channels, height, width = map(int, values["shape"])
        splits = {str(split): int(count) for split, count in values["splits"].items()}
        files: dict[str, dict[str, int]] = {split: {} for split in splits}
        for item in values["files"]:
            files[item["split"]][str(item["file"])] = int(item["rows"])
        sizes = {str(item["file"]): int(item["bytes"]) for item in values["files"]}
        shape, classes = (channels, height, width), tuple(map(str, values["classes"]))
        digests = {str(split): str(digest) for split, digest in values["digests"].items()}
        has_words = bool(values["has_words"])
        return cls(str(values["shards"]), shape, splits, files, sizes, digests, classes, has_words)


def read_prepared(filesystem: "fs.FileSystem", folder: str) -> Prepared | None:
    """The manifest of `folder`; None if this package wrote none. Raises UserError if it is damaged."""
    from npdraw_dist.system.storage import display_path, is_file, read_bytes

    path = f"{folder}/{MANIFEST}"
    if not is_file(filesystem, path):
        return None
    try:
        values = json.loads(read_bytes(filesystem, path))
        return Prepared.of(values) if values.get("maker") == MAKER else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        shown = display_path(filesystem, path)
        raise UserError(f"{shown} is damaged ({error}); run `npdraw prepare` again") from None


def with_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the image sizes from the manifest in data.path to the nested settings.

    Sizes that the user gave stay; the source rejects wrong sizes when it opens the data. Raises UserError if
    data.path cannot be read.
    """
    data = values.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("path"), str):
        return dict(values)
    source = SOURCES.get(str(data.get("source")))
    given = {name: data[name] for name in SIZES if data.get(name) is not None}
    if source is None or not source.prepared or len(given) == len(SIZES):
        return dict(values)

    from npdraw_dist.system.storage import open_filesystem

    try:
        found = read_prepared(*open_filesystem(data["path"]))
    except OSError as error:
        raise UserError(f"cannot read data.path {data['path']}: {error}") from None
    stated: dict[str, Any] = {}
    if found is not None:
        stated = {"channels": found.shape[0], "image_size": size_of(*found.shape[1:])}
    return {**values, "data": {**data, **stated, **given}}
