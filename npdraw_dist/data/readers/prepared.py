"""The folder that `npdraw_dist.prepare` writes: what its readers need to know."""

import json
from dataclasses import dataclass, field

from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import read_bytes
from npdraw_dist.data.splits import SPLITS, Split, stated_split

MANIFEST = "manifest.json"
MAKER = "npdraw_dist.prepare"


@dataclass(frozen=True)
class Layout:
    """The splits that the names of the files and a manifest state. own: those of some file."""

    stated: dict[str, Split | None]
    own: frozenset[str]
    counts: dict[Split, int | None] = field(default_factory=dict)


def file_splits(filesystem: fs.FileSystem, paths: list[str], root: str | None) -> Layout:
    """The split of each file is that of its folder. `root` may hold the manifest of `prepare`."""
    stated = {path: stated_split(path.split("/")[-2] if "/" in path else None) for path in paths}
    manifest = f"{root}/{MANIFEST}"
    if root is not None and filesystem.get_file_info(manifest).type == fs.FileType.File:
        try:
            values = json.loads(read_bytes(filesystem, manifest))
            if values.get("maker") == MAKER:  # it has all splits, also empty ones
                counts = {split: int(values["splits"][split]) for split in SPLITS}
                return Layout(stated, frozenset(SPLITS), dict(counts))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{manifest} is damaged ({error}); run npdraw_dist.prepare again") from None
    return Layout(stated, frozenset(s for s in stated.values() if s))
