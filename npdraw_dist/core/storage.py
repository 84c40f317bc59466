"""Files on this machine and at URIs alike, through pyarrow's filesystems (fsspec's for other schemes)."""

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.core.errors import UserError

PART = ".part"  # ends the name of a file that is still being written


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path on it, without a slash at its end.

    Raises UserError where no installed library knows the scheme.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        import fsspec  # the other schemes; slow to load

        try:
            other, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot open {uri}: {error}") from None
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    except OSError as error:
        raise UserError(f"cannot open {uri}: {error}") from None
    return filesystem, path.rstrip("/")


def list_files(filesystem: fs.FileSystem, path: str) -> list[tuple[str, int]]:
    """(path, bytes) of all files under the folder `path`, or of the file that it is, sorted; [] if none."""
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return [(info.path, info.size)]
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted((item.path, item.size) for item in found if item.type == fs.FileType.File)


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_beside(filesystem: fs.FileSystem, path: str, write: Callable[[Any], object]) -> None:
    """`write(stream)` to a file beside `path`, then renames it: `path` is whole or not there.

    The name beside is new each time, so that two workers with the same shard do not meet.
    """
    beside = f"{path}.{uuid.uuid4().hex[:8]}{PART}"
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(beside) as stream:
            write(stream)
        filesystem.move(beside, path)
    except BaseException:
        if filesystem.get_file_info(beside).type == fs.FileType.File:
            filesystem.delete_file(beside)
        raise


def write_text(filesystem: fs.FileSystem, path: str, text: str) -> None:
    write_beside(filesystem, path, lambda stream: stream.write(text.encode()))


def sha256(filesystem: fs.FileSystem, path: str) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
