"""Where a command writes: found wrong, or too small, before anything is computed; and the writing."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import open_filesystem, write_bytes

GB = 1e9
COMPRESSED = 0.1  # least share that compression leaves of images; scikit-learn's digits keep 0.44


def _nearest_folder(path: Path) -> Path:
    """The deepest existing folder or file on the way to `path`."""
    return next(found for found in (path, *path.parents) if found.exists())


def require_writable(out: str, folder: bool = False) -> None:
    """Raises UserError if --out, a file or folder or its URI, cannot be written. Creates nothing.

    It tries only scheme, credentials and bucket of a URI.
    """
    filesystem, path = open_filesystem(out)
    if out.startswith(("http://", "https://")):
        raise UserError(f"cannot write to --out {out}: HTTP only reads; choose another place")
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    if not folder and os.path.isdir(path):
        raise UserError(f"--out {out} is a folder; give a file")
    found = _nearest_folder(Path(path) if folder else Path(path).parent)
    if not found.is_dir():
        raise UserError(f"cannot write to --out {out}: {found} is a file; choose another place")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to --out {out}: no permission to write in {found}; choose another place"
        )


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Turns an error of the block, which writes to the file or folder `out`, into a UserError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot write to --out {out}: {error}") from None


def write_files(out: str, files: Mapping[str, bytes]) -> list[str]:
    """Writes files, by name, to the folder or URI `out`; returns their paths. Raises UserError."""
    filesystem, path = open_filesystem(out)
    with writing(out):
        for name, content in files.items():
            write_bytes(filesystem, f"{path}/{name}", content)
    return [f"{out.rstrip('/')}/{name}" for name in files]


@dataclass(frozen=True)
class Size:
    """Bytes that will be written. least: even if compression does very well; most: without compression."""

    least: float = 0.0
    most: float = 0.0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.least + other.least, self.most + other.most)


def require_space(filesystem: fs.FileSystem, folder: str, size: Size, advice: str) -> str | None:
    """Raises UserError, with `advice`, if the least of `size` does not fit where the local `folder` will be.

    Returns a warning if the most does not fit. The space of an object store is not known.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        return None
    free = shutil.disk_usage(_nearest_folder(Path(folder))).free
    there = f"GB, and {free / GB:,.2f} GB are free there"
    if size.least > free:
        raise UserError(f"{folder} needs at least {size.least / GB:,.2f} {there}; {advice}")
    return f"{folder} may need up to {size.most / GB:,.2f} {there}" if size.most > free else None
