"""Lists the files of a data source as Arrow tables, since ten million Python objects would take gigabytes.

Columns: path (below the root of the source, sorted), size in bytes, modified in ns since 1970 (null where
the store records no times).
"""

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import map_items
from npdraw_dist.system.storage import path_of

SCHEMA = pa.schema([("path", pa.large_string()), ("size", pa.int64()), ("modified", pa.int64())])
ROWS = 1 << 16  # largest number of files that are Python objects at the same time
MANY = 64  # Ray tasks list the top folders if there are at least this many
LISTED = 16  # number of top folders that one task lists
File = tuple[str, int, int | None]


def list_tree(filesystem: fs.FileSystem, root: str) -> pa.Table:
    """Lists the files below the folder `root`. The table is empty if the folder does not exist.

    If Ray runs and `root` has many top folders, Ray tasks list them, since a shared storage takes up to a
    millisecond for each file. Links to local folders are followed, except back to a parent folder. A byte of
    a local name that is not UTF-8 is written as an escape such as \\xe9; `local_path` finds the file.
    """
    local = isinstance(filesystem, fs.LocalFileSystem)
    files_in = partial(_walk, root) if local else partial(_select, filesystem, root)
    folders = _top_folders(filesystem, root) if ray_runs() else []
    if len(folders) < MANY:
        tables = [_table(files_in(""))]
    else:
        some = [folders[start : start + LISTED] for start in range(0, len(folders), LISTED)]
        tables = [_table(files_in("", deep=False)), *map_items(some, partial(_list_folders, files_in))]
    return pa.concat_tables(tables).sort_by("path").combine_chunks()


def local_path(root: str, path: str) -> Path:
    """The local file at a path that `list_tree` returns."""
    found = Path(root, path)
    if "\\x" in path and not found.exists():
        name = re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes.fromhex(byte[1].decode()), os.fsencode(path))
        found = Path(root, os.fsdecode(name))
    return found


def list_paths(filesystem: fs.FileSystem, root: str, paths: Sequence[str]) -> pa.Table:
    """Lists the files at `paths` below `root` without listing a folder. A missing file is left out."""
    infos = filesystem.get_file_info([f"{root}/{path}" if root else path for path in paths])
    found = zip(paths, infos, strict=True)
    return _table((p, i.size, i.mtime_ns) for p, i in found if i.type == fs.FileType.File).sort_by("path")


def below_root(paths: Sequence[str], root: str | None = None) -> tuple[str, list[str]]:
    """A folder that contains all files `paths`, and their paths below it. "" is the root of the filesystem.

    root: the folder; by default the deepest folder that contains all files.
    """
    if root is None:
        root = posixpath.commonpath([posixpath.dirname(path) for path in paths]).rstrip("/")
    return root, [path[len(root) + 1 :] if root else path for path in paths]


def stamp_of(files: pa.Table) -> str:
    """Hexadecimal SHA-256 of the rows, which changes if a file is added, removed or written again."""
    digest = hashlib.sha256()
    for batch in files.to_batches(ROWS):
        digest.update(json.dumps(batch.to_pydict()).encode())
    return digest.hexdigest()


def _list_folders(files_in: Callable[[str], Iterator[File]], folders: Sequence[str]) -> pa.Table:
    return _table(chain.from_iterable(map(files_in, folders)))


def _table(files: Iterable[File]) -> pa.Table:
    rest = iter(files)
    pieces = []
    while some := list(islice(rest, ROWS)):
        columns = zip(zip(*some, strict=True), SCHEMA, strict=True)
        pieces.append(pa.table([pa.array(column, field.type) for column, field in columns], SCHEMA))
    return pa.concat_tables([SCHEMA.empty_table(), *pieces])


def _infos(filesystem: fs.FileSystem, folder: str, deep: bool) -> list[fs.FileInfo]:
    """The files and folders that a store lists below a folder; [] if the folder does not exist."""
    try:
        return filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=deep))
    except NotADirectoryError:
        return []


def _top_folders(filesystem: fs.FileSystem, root: str) -> list[str]:
    top = _infos(filesystem, root, deep=False)
    return sorted(path_of(info).rpartition("/")[2] for info in top if info.type == fs.FileType.Directory)


def _select(filesystem: fs.FileSystem, root: str, folder: str, deep: bool = True) -> Iterator[File]:
    """Yields the files in a folder of a store. folder: path below `root`, or "" for `root` itself."""
    start = len(root) + 1 if root else 0
    for info in _infos(filesystem, "/".join(filter(None, (root, folder))), deep):
        if info.type == fs.FileType.File:
            yield path_of(info)[start:], info.size, info.mtime_ns


def _walk(root: str, folder: str, deep: bool = True, above: tuple[str, ...] = ()) -> Iterator[File]:
    """Yields the files in a local folder below `root`. above: real paths of its parents, to stop at loops."""
    where = os.path.join(root, folder)
    real = os.path.realpath(where)
    if real in above:
        return
    for entry in _scan(where):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_dir():
            if deep:
                yield from _walk(root, path, deep, (*above, real))
        elif entry.is_file():
            found = entry.stat()
            yield os.fsencode(path).decode(errors="backslashreplace"), found.st_size, found.st_mtime_ns


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        yield from os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # a disk's lost+found is unreadable
        return
