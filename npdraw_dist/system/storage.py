"""Reads and writes local files and files at URIs with pyarrow's filesystems, or fsspec's for other schemes.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, the role of an instance ...), never
from a URI, since URIs are written to config.yaml and to logs. AWS_ENDPOINT_URL sets another S3 server.
pyarrow repeats failed requests to S3 and Google Cloud. For other storages, their own libraries do.
"""

import contextlib
import hashlib
import io
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.system.errors import UserError

PARTIAL = ".part"  # suffix of a file that is still being written
COPIERS = 8  # threads that copy the files of a folder
READERS = 16  # threads that read many small files

# pyarrow's name of an object store -> its URI scheme. In an object store, a file appears as a whole when its
# upload is complete, a rename is a copy, and folders need not be created.
OBJECT_STORES = {"s3": "s3", "gcs": "gs", "abfs": "abfs"}
CONNECT_S = 5  # seconds that a server has to respond to each of the three attempts of `impatient`
# A failed request is repeated for at least RETRY_S seconds. The environment variable RETRY_VARIABLE, which
# subprocesses inherit, sets another time.
RETRY_VARIABLE, RETRY_S = "NPDRAW_STORAGE_RETRY_S", 300.0
FIRST_PAUSE_S = 0.025  # AWS's default pause, in seconds, before the first retry; each later pause is doubled

Item = TypeVar("Item")
Found = TypeVar("Found")


class PatientS3(fs.S3FileSystem):  # type: ignore[misc]
    """Repeats a failed request to S3 for `limit_s` seconds. options: arguments of `fs.S3FileSystem`.

    Unlike pyarrow's class, it is pickled with its retry strategy, so that other processes also repeat
    requests.
    """

    def __init__(self, options: dict[str, Any], limit_s: float) -> None:
        attempts = math.ceil(math.log2(max(limit_s / FIRST_PAUSE_S, 1)))  # retries after the first attempt
        super().__init__(**options, retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=attempts))
        self.made_of = options, limit_s

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientS3, self.made_of


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a path or URI, and the path on it without a trailing slash.

    Raises UserError if no installed library knows the scheme, if the URI contains a password, or if an object
    store does not answer, refuses the credentials or lacks the bucket.
    """
    if not uri:
        raise UserError("a path or URI is empty; is a variable unset?")
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    try:
        _refuse_password(uri)
        filesystem, path = _of_uri(uri)
        if filesystem.type_name in OBJECT_STORES:
            _check_bucket(filesystem, path)
    except UserError:
        raise
    except (pa.ArrowInvalid, ImportError, ValueError, OSError) as error:
        raise UserError(f"cannot open {uri}: {error}") from None
    limit_s = float(os.environ.get(RETRY_VARIABLE, RETRY_S))
    if filesystem.type_name == "s3":
        # With a delayed open, a small file takes a single request.
        filesystem = PatientS3({**_options(filesystem), "allow_delayed_open": True}, limit_s)
    elif filesystem.type_name == "gcs":
        patience = {"retry_time_limit": timedelta(seconds=limit_s)}
        filesystem = fs.GcsFileSystem(**{**_options(filesystem), **patience})
    return filesystem, path.rstrip("/")


def _of_uri(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
        return found
    except pa.ArrowNotImplementedError:
        pass
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    import fsspec  # for schemes that pyarrow does not know; slow to load

    other, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(other)), path


def _refuse_password(uri: str) -> None:
    if urlsplit(uri).password is not None:
        scheme, _, rest = uri.partition("://")
        raise UserError(
            f"{scheme}://***@{rest.rpartition('@')[2]} contains a password; set credentials in environment "
            "variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3)"
        )


def _check_bucket(filesystem: fs.FileSystem, path: str) -> None:
    """Raises ValueError or OSError within seconds if `path` is unusable.

    Without this check, the first use of `path` would fail only after minutes of retries.
    """
    bucket = path.partition("/")[0]
    if not bucket:
        raise ValueError("it does not name a bucket")
    hasty = impatient(filesystem)
    if hasty.get_file_info(path).type != fs.FileType.NotFound:
        return
    with contextlib.suppress(OSError):  # permission to list the bucket is not required
        if hasty.get_file_info(bucket).type == fs.FileType.NotFound:
            raise ValueError(f"there is no bucket {bucket}; create it first")


def _options(filesystem: fs.FileSystem) -> dict[str, Any]:
    return {name: value for name, value in filesystem.__reduce__()[1][0].items() if value}


def impatient(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same S3 or Google Cloud with few retries and short time limits; any other filesystem unchanged."""
    if filesystem.type_name == "gcs":
        patience = {"retry_time_limit": timedelta(seconds=3 * CONNECT_S)}
        return fs.GcsFileSystem(**{**_options(filesystem), **patience})
    if filesystem.type_name == "s3":
        limits = {"connect_timeout": CONNECT_S, "request_timeout": CONNECT_S}
        strategy = fs.AwsStandardS3RetryStrategy(max_attempts=3)
        return fs.S3FileSystem(**{**_options(filesystem), **limits}, retry_strategy=strategy)
    return filesystem


def display_path(filesystem: fs.FileSystem, path: str) -> str:
    """`path` as a user writes it, with the scheme of an object store."""
    scheme = OBJECT_STORES.get(filesystem.type_name)
    return f"{scheme}://{path}" if scheme else path


def is_object_store(filesystem: fs.FileSystem) -> bool:
    """Whether the filesystem has no folders and shows a file only when it is complete."""
    return filesystem.type_name in OBJECT_STORES


def is_file(filesystem: fs.FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def list_files(filesystem: fs.FileSystem, path: str) -> list[tuple[str, int]]:
    """Sorted (path, bytes) of all files under the folder `path`, or of the file `path`; [] if none exist."""
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    try:
        found = filesystem.get_file_info(selector)  # for a folder with files, this is the only request
    except NotADirectoryError:
        found = []
    found = found or [filesystem.get_file_info(path)]
    return sorted((path_of(item), item.size) for item in found if item.type == fs.FileType.File)


def path_of(info: fs.FileInfo) -> str:
    """The path of a listed file or folder. Raises UserError on a name that is not UTF-8."""
    try:
        return str(info.path)
    except UnicodeDecodeError as error:  # `error.object` holds the bytes of the path
        shown = error.object.decode(errors="backslashreplace")
        raise UserError(
            f"the name of {shown} is not UTF-8; rename the file or folder shown with a backslash"
        ) from None


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as file:  # a stream would request 256 KB at a time
        return bytes(file.read())


def in_threads(read: Callable[[Item], Found], items: Iterable[Item], threads: int = READERS) -> list[Found]:
    """[read(item) for item in items] on several threads, since a remote store answers slowly."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, items))


def require_readable(filesystem: fs.FileSystem, path: str) -> None:
    """Reads a file to its end. Raises OSError if the storage fails, but not if the file is damaged."""
    with filesystem.open_input_stream(path) as stream:
        while stream.read(1 << 20):
            pass


def write_atomically(filesystem: fs.FileSystem, path: str, write: Callable[[Any], object]) -> None:
    """Calls `write(stream)` on a temporary file and renames it to `path`, so readers see only whole files.

    An object store gets the content only after `write` has returned, since closing a stream after an error
    would publish a truncated file.
    """
    if is_object_store(filesystem):
        buffer = io.BytesIO()
        write(buffer)
        with filesystem.open_output_stream(path) as stream:
            stream.write(buffer.getbuffer())
        return
    temporary = f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}"
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    try:
        with filesystem.open_output_stream(temporary) as stream:
            write(stream)
        filesystem.move(temporary, path)
    except BaseException:
        if is_file(filesystem, temporary):
            filesystem.delete_file(temporary)
        raise


def write_bytes(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    write_atomically(filesystem, path, lambda stream: stream.write(content))


def write_text(filesystem: fs.FileSystem, path: str, text: str) -> None:
    write_bytes(filesystem, path, text.encode())


def copy(source: fs.FileSystem, start: str, target: fs.FileSystem, end: str) -> None:
    """Copies the file or folder `start` to `end`, without empty folders. Raises OSError if the storage fails.

    It does not use `fs.copy_files`, which first requests each parent folder; object stores have no folders.
    """

    def copy_one(path: str) -> None:
        to = end + path[len(start) :]
        if not is_object_store(target):
            target.create_dir(to.rpartition("/")[0], recursive=True)
        with source.open_input_stream(path) as stream, target.open_output_stream(to) as sent:
            shutil.copyfileobj(stream, sent, 1 << 20)

    files = [path for path, _ in list_files(source, start)]
    if not files and source.get_file_info(start).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"{start} does not exist")
    in_threads(copy_one, files, COPIERS)


@contextmanager
def local_copy(filesystem: fs.FileSystem, path: str) -> Iterator[Path]:
    """Yields the path of a local file or folder, or of a temporary copy of a remote one."""
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.rpartition("/")[2]
        copy(filesystem, path, fs.LocalFileSystem(), str(local))
        yield local


def sha256(filesystem: fs.FileSystem, path: str) -> str:
    """Hexadecimal SHA-256 of a file."""
    with filesystem.open_input_stream(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Checks of output paths, which commands call before they compute.


def require_writable(out: str, folder: bool = False) -> None:
    """Raises UserError if `out`, the path or URI of a file or folder, cannot be written. Creates nothing.

    For a URI, it checks only the scheme, the credentials and the bucket.
    """
    filesystem, path = open_filesystem(out)
    if out.startswith(("http://", "https://")):
        raise UserError(f"cannot write to --out {out}: HTTP is read-only; choose another place")
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    if not folder and os.path.isdir(path):
        raise UserError(f"--out {out} is a folder; give a file")
    wanted = Path(path) if folder else Path(path).parent
    found = next(parent for parent in (wanted, *wanted.parents) if parent.exists())
    if not found.is_dir():
        raise UserError(f"cannot write to --out {out}: {found} is a file; choose another place")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to --out {out}: no permission to write in {found}; choose another place"
        )


def require_apart(folder: str, filesystem: fs.FileSystem, path: str, what: str, flag: str) -> None:
    """Raises UserError if `path` is inside the data's `folder`, since files there would be read as data.

    what: the output at `path`. flag: the flag that sets `path`.
    """
    of_data, root = open_filesystem(folder)
    if of_data.type_name == filesystem.type_name and PurePosixPath(path).is_relative_to(root):
        shown = display_path(filesystem, path)
        raise UserError(f"{what} would lie among the pictures, in {shown}; give a {flag} elsewhere")


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Turns a storage error in the block, which writes to `out`, into a UserError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot write to --out {out}: {error}") from None


def write_files(out: str, files: Mapping[str, bytes]) -> list[str]:
    """Writes `files` (name to content) to the folder or URI `out`; returns their paths. Raises UserError."""
    filesystem, path = open_filesystem(out)
    with writing(out):
        for name, content in files.items():
            write_bytes(filesystem, f"{path}/{name}", content)
    return [f"{out.rstrip('/')}/{name}" for name in files]
