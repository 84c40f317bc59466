"""What a data set is made of: its files with sizes, times and checksums, so that other data are noticed.

Where size and time of a file are what they were, its content counts as the same without being read. So a
file whose content was changed, and whose time was then set back, is not noticed; and neither is a change
within the resolution of a store's clock (a second on S3).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.core.storage import display_path, in_threads, path_of, read_bytes, sha256, write_atomically
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import map_items

CHECKSUM_MB = 4096  # files up to this size together get checksums, which tell changed data from moved ones
MANY = 64  # folders that tasks list: of fewer, the driver is done before a task has started
LISTED = 16  # folders a task
BY_PATH = attrgetter("path")
COLUMNS = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("modified", pa.int64()), ("sha256", pa.string())]
)


@dataclass(frozen=True)
class InputFile:
    """A file of a data set. path: relative to the root of the source. size: in bytes.

    modified: ns since 1970; None where the store has no times. sha256: hexadecimal; None if not known.
    """

    path: str
    size: int
    modified: int | None = None
    sha256: str | None = None


def list_tree(filesystem: fs.FileSystem, root: str) -> list[InputFile]:
    """The files below the folder `root`, without checksums, sorted by path; [] if there is no such folder.

    Where Ray runs, the files of its many folders are listed in tasks: a shared storage takes up to a
    millisecond for each. Raises UserError as `map_items`.
    """
    try:
        top = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except NotADirectoryError:
        return []
    folders = [path_of(info) for info in top if info.type == fs.FileType.Directory]
    found = _files(top, root)
    each = LISTED if ray_runs() and len(folders) >= MANY else max(len(folders), 1)
    some = [folders[start : start + each] for start in range(0, len(folders), each)]
    list_some = partial(_list_folders, filesystem, root)
    for files in map_items(some, list_some) if len(some) > 1 else map(list_some, some):
        found += files
    return sorted(found, key=BY_PATH)


def _list_folders(filesystem: fs.FileSystem, root: str, folders: Sequence[str]) -> list[InputFile]:
    found = (filesystem.get_file_info(fs.FileSelector(folder, recursive=True)) for folder in folders)
    return [file for infos in found for file in _files(infos, root)]


def _files(infos: Iterable[fs.FileInfo], root: str) -> list[InputFile]:
    """Those of `infos` that are files. Their paths are relative to `root`."""
    start = len(root) + 1 if root else 0
    files = (info for info in infos if info.type == fs.FileType.File)
    return [InputFile(path_of(info)[start:], info.size, info.mtime_ns) for info in files]


@dataclass(frozen=True)
class Identity:
    """All files of a data set, sorted by path. root: the folder or URI that they were found in.

    setting: the `data.path` by which they were found last, if it was recorded.
    """

    files: tuple[InputFile, ...]
    root: str = ""
    setting: str | None = None

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of path, size and checksum of the files, or time where there is no checksum."""
        facts = [[f.path, f.size, f.sha256 or f.modified] for f in sorted(self.files, key=BY_PATH)]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()

    def landmarks(self) -> Landmarks | None:
        """For other nodes to look for; None if the files are at a URI or not on this node."""
        local = bool(self.root) and "://" not in self.root
        return _landmarks(self.root, [file.path for file in self.files]) if local else None


@dataclass(frozen=True)
class Inputs:
    """The files that a source reads: `paths` below the folder `root`.

    is_folder: the paths are found by listing `root`, which is faster than asking for each. stated: path ->
    (bytes, SHA-256) as a manifest states them. arrays: what comes from no file, already with a checksum.
    """

    filesystem: fs.FileSystem
    root: str
    paths: tuple[str, ...]
    is_folder: bool = False
    stated: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    arrays: tuple[InputFile, ...] = ()

    @classmethod
    def of_paths(cls, filesystem: fs.FileSystem, paths: Sequence[str]) -> "Inputs":
        """The inputs at single files; their root is the deepest folder that holds them all."""
        folders = [path.split("/")[:-1] for path in paths]
        shared = folders[0]
        while any(folder[: len(shared)] != shared for folder in folders):
            shared = shared[:-1]
        root = "/".join(shared)
        return cls(filesystem, root, tuple(path[len(root) + 1 :] if root else path for path in paths))

    @property
    def _prefix(self) -> str:
        return f"{self.root}/" if self.root else ""

    def listed(self) -> Identity:
        """The files as they are now, without checksums. One that is not there is left out."""
        if self.is_folder:
            wanted = set(self.paths)
            files = [file for file in list_tree(self.filesystem, self.root) if file.path in wanted]
        else:
            infos = self.filesystem.get_file_info([self._prefix + path for path in self.paths])
            files = _files(infos, self.root)
        in_order = sorted([*files, *self.arrays], key=BY_PATH)
        return Identity(tuple(in_order), display_path(self.filesystem, self.root))

    def checksums(self, files: Iterable[InputFile]) -> dict[str, str | None]:
        """path -> SHA-256 of each of `files`, all of which are read; None if one cannot be read."""

        def read(file: InputFile) -> tuple[str, str | None]:
            try:
                return file.path, sha256(self.filesystem, self._prefix + file.path)
            except OSError:  # a stage rejects the image, or names the file
                return file.path, None

        return dict(in_threads(read, files))

    def folders(self) -> list[Landmarks | None]:
        """As `map_items` takes them: that of the files; None if they are at a URI; [] without files."""
        if not self.paths:
            return []
        local = isinstance(self.filesystem, fs.LocalFileSystem)
        return [_landmarks(self.root, self.paths) if local else None]

    def stated_checksum(self, file: InputFile) -> str | None:
        """The checksum that a manifest states of `file`; None if there is none, or if the size differs."""
        size, checksum = self.stated.get(file.path, (-1, None))
        return checksum if size == file.size else None


def _landmarks(root: str, paths: Sequence[str]) -> Landmarks | None:
    return Landmarks.of("the data", "--data.path", root, sorted(paths))


def identify(inputs: Inputs) -> Identity:
    """The files of a source, with the checksums that its manifest states or that are cheap to make.

    Files without one are read if they hold at most CHECKSUM_MB together.
    """
    listed = inputs.listed()
    files = [replace(file, sha256=file.sha256 or inputs.stated_checksum(file)) for file in listed.files]
    unknown = [file for file in files if file.sha256 is None]
    if _is_cheap(unknown):
        made = inputs.checksums(unknown)
        files = [replace(file, sha256=file.sha256 or made[file.path]) for file in files]
    return Identity(tuple(files), listed.root)


def _is_cheap(files: Sequence[InputFile]) -> bool:
    return sum(file.size for file in files) <= CHECKSUM_MB * 2**20


@dataclass(frozen=True)
class Comparison:
    """changes: what differs from a record, a clause for each file. identity: the record with the root and the
    times of now; of use only if nothing changed."""

    identity: Identity
    changes: tuple[str, ...]

    def __str__(self) -> str:
        """The changes, at most two by name."""
        if len(self.changes) == 2:
            return " and ".join(self.changes)
        more = f" (and {len(self.changes) - 1} more)" if len(self.changes) > 1 else ""
        return "".join(self.changes[:1]) + more


def compare(recorded: Identity, inputs: Inputs) -> Comparison:
    """Whether a source holds what was recorded. No file is read whose size and time are equal.

    Where only times differ, or all files lie elsewhere, the recorded checksum decides: such files are read if
    they hold at most CHECKSUM_MB together; else the checksum that a manifest states counts.
    """
    listed = inputs.listed()
    old, new = ({file.path: file for file in files} for files in (recorded.files, listed.files))
    wrong = {path: f"{path} is missing" for path in old.keys() - new.keys()}
    wrong |= {path: f"{path} is new" for path in new.keys() - old.keys()}
    common = sorted(old.keys() & new.keys())
    wrong |= {path: f"{path} has another size" for path in common if old[path].size != new[path].size}
    moved = listed.root != recorded.root
    doubtful = [path for path in common if path not in wrong and not _is_same(old[path], new[path], moved)]
    checksums = _checksums_now(inputs, [new[p] for p in doubtful if old[p].sha256])
    for path in doubtful:
        now, kept = checksums.get(path), old[path].modified == new[path].modified is not None
        if old[path].sha256 is None:
            wrong[path] = f"{path} has another time and no recorded checksum (cp -p keeps times)"
        elif now is None and not kept:
            wrong[path] = f"{path} has another time, and the files are too large to read (cp -p keeps times)"
        elif now not in (None, old[path].sha256):
            wrong[path] = f"{path} has another content"
    files = tuple(replace(file, sha256=old[file.path].sha256) for file in listed.files if file.path in old)
    return Comparison(Identity(files, listed.root), tuple(wrong[path] for path in sorted(wrong)))


def _is_same(old: InputFile, new: InputFile, moved: bool) -> bool:
    """Whether files of one size are equal. In another folder, times mean less than a checksum."""
    if old.sha256 is None:
        return old.modified == new.modified  # also where the store has no times: the size alone decides
    return new.sha256 == old.sha256 or (old.modified == new.modified is not None and not moved)


def _checksums_now(inputs: Inputs, files: list[InputFile]) -> dict[str, str | None]:
    """Known of arrays, read if that is cheap, else as a manifest states."""
    known = {file.path: file.sha256 for file in files if file.sha256}
    unknown = [file for file in files if file.path not in known]
    if _is_cheap(unknown):
        return {**known, **inputs.checksums(unknown)}
    return {**known, **{file.path: inputs.stated_checksum(file) for file in unknown}}


def save(identity: Identity, filesystem: fs.FileSystem, path: str) -> None:
    """Writes a Parquet table with a row a file; digest, root and setting are metadata."""
    metadata = {"digest": identity.digest, "root": identity.root}
    metadata |= {} if identity.setting is None else {"setting": identity.setting}
    table = pa.Table.from_pylist([vars(file) for file in identity.files], schema=COLUMNS)
    table = table.replace_schema_metadata(metadata)
    write_atomically(filesystem, path, lambda stream: pq.write_table(table, stream))


def load(filesystem: fs.FileSystem, path: str) -> Identity:
    """What `save` wrote. Raises UserError if it is damaged."""
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(filesystem, path)))
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        files = tuple(InputFile(**row) for row in table.to_pylist())
        return Identity(files, metadata["root"], metadata.get("setting"))
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{display_path(filesystem, path)} is unreadable ({error})") from None
