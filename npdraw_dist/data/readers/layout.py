"""Splits, counts and checksums of data that lie in files: from folders, and from what `prepare` states."""

import hashlib
import json
from dataclasses import dataclass, field

from pyarrow import fs

from npdraw_dist.config.prepared import MANIFEST, Prepared, read_prepared
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.identity import InputFile, Inputs
from npdraw_dist.data.splits import SPLITS, Split, stated_split


@dataclass(frozen=True)
class Layout:
    """The splits that the names of the files and a manifest state. own: those of some file.

    prepared: the manifest, of files below the root of `inputs`.
    """

    inputs: Inputs
    stated: dict[str, Split | None]
    own: frozenset[str]
    counts: dict[Split, int | None] = field(default_factory=dict)
    prepared: Prepared | None = None

    def row_groups(self, path: str, size: int) -> list[int] | None:
        """The rows of each row group of a Parquet file of `size` bytes; None if no manifest tells."""
        if self.prepared is None:
            return None
        return self.prepared.row_groups(path[len(self.inputs.root) + 1 :], size)


def file_splits(data: DataConfig, filesystem: fs.FileSystem, paths: list[str], root: str | None) -> Layout:
    """The split of each file is that of its folder. `root` may hold the manifest of `prepare`.

    Prepared data keep their splits. Only if they were prepared without validation images, a share
    `data.valid_fraction` of their training images is held out by the hash of the id; neither is counted then.
    Raises UserError if the manifest states images of another shape than `data`.
    """
    stated = {path: stated_split(path.split("/")[-2] if "/" in path else None) for path in paths}
    own = frozenset(s for s in stated.values() if s)
    if root is None:
        return Layout(Inputs.of_paths(filesystem, paths), stated, own)
    names = tuple(path[len(root) + 1 :] for path in paths)
    prepared = read_prepared(filesystem, root)
    if prepared is None:
        return Layout(Inputs(filesystem, root, names, is_folder=True), stated, own)
    if prepared.shape != data.shape:
        raise UserError(
            f"data.path {data.path} was prepared with images {_sizes(prepared.shape)}, not "
            f"{_sizes(data.shape)}; give --data.image_size {prepared.shape[1]} --data.channels "
            f"{prepared.shape[0]}, or leave out both where no preset states them"
        )
    inputs = Inputs(filesystem, root, names, True, prepared.checksums, (_identity(prepared),))
    counts: dict[Split, int | None] = {split: prepared.splits[split] for split in SPLITS}
    own = frozenset(SPLITS)
    if not counts["valid"] and data.valid_fraction > 0:
        own -= {"valid"}
        counts |= {"train": None, "valid": None}
    return Layout(inputs, stated, own, counts, prepared)


def _identity(prepared: Prepared) -> InputFile:
    """What the manifest says of the images. The rest of it, such as where they came from, may change."""
    content = json.dumps({"shape": prepared.shape, "splits": prepared.splits}, sort_keys=True).encode()
    return InputFile(MANIFEST, len(content), None, hashlib.sha256(content).hexdigest())


def _sizes(shape: tuple[int, int, int]) -> str:
    return f"of {shape[0]} channel(s) and {shape[1]}x{shape[2]} pixels"
