"""Files on this machine and at URIs, through pyarrow's filesystems (fsspec's for other schemes).

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, the role of an instance ...), never
from a URI, since URIs are written to config.yaml and to logs. AWS_ENDPOINT_URL sets another S3 server.
"""

import contextlib
import hashlib
import io
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.retrying import unwrapped, with_retries

PARTIAL = ".part"  # suffix of a file that is still being written
COPIERS = 8  # threads that send the files of a folder

# pyarrow's name of a filesystem -> scheme. In an object store, a file appears as a whole when its upload is
# complete, a rename is a copy, and folders need not be created.
OBJECT_STORES = {"s3": "s3", "gcs": "gs", "abfs": "abfs"}
CONNECT_S = 5  # time limit of a server's first answer; there are three attempts


def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path on it, without a trailing slash.

    Raises UserError if no installed library knows the scheme, if the URI contains a password, or if an object
    store does not answer, refuses the credentials or lacks the bucket. Later faults of a storage at a URI are
    waited out (retrying.py).
    """
    if not uri:
        raise UserError("a path or URI is empty; is a variable unset?")
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    filesystem, path = _open_uri(uri)
    return with_retries(filesystem), path.rstrip("/")


def _open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    _refuse_password(uri)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if isinstance(error, pa.ArrowInvalid) and "Unrecognized filesystem type" not in str(error):
            raise UserError(f"cannot open {uri}: {error}") from None
        import fsspec  # the other schemes; slow to load

        try:
            other, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot open {uri}: {error}") from None
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    except OSError as error:
        raise UserError(f"cannot open {uri}: {error}") from None
    if filesystem.type_name in OBJECT_STORES:
        _check_bucket(filesystem, path, uri)
    if filesystem.type_name == "s3":
        # Uploads are sent whole, by a thread of pyarrow's, which must not wait for others of the same pool; a
        # small one is a single request. Made from options, it makes few attempts of its own: ours follow.
        sending = {"background_writes": False, "allow_delayed_open": True}
        filesystem = fs.S3FileSystem(**{**_options(filesystem), **sending})
    return filesystem, path


def _refuse_password(uri: str) -> None:
    try:
        password = urlsplit(uri).password
    except ValueError as error:
        raise UserError(f"cannot open {uri}: {error}") from None
    if password is not None:
        scheme, _, rest = uri.partition("://")
        raise UserError(
            f"{scheme}://***@{rest.rpartition('@')[2]} contains a password; set credentials in environment "
            "variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3)"
        )


def _check_bucket(filesystem: fs.FileSystem, path: str, uri: str) -> None:
    """Raises UserError within seconds if the first use of `path` would fail or retry for minutes."""
    bucket = path.partition("/")[0]
    if not bucket:
        raise UserError(f"cannot open {uri}: it names no bucket")
    impatient = _impatient(filesystem)
    try:
        if impatient.get_file_info(path).type != fs.FileType.NotFound:
            return
    except OSError as error:
        raise UserError(f"cannot open {uri}: {error}") from None
    with contextlib.suppress(OSError):  # permission to list the bucket is not required
        if impatient.get_file_info(bucket).type == fs.FileType.NotFound:
            raise UserError(f"cannot open {uri}: there is no bucket {bucket}; create it first")


def _options(filesystem: fs.FileSystem) -> dict[str, Any]:
    """What an S3 or GCS filesystem was made with."""
    return {name: value for name, value in filesystem.__reduce__()[1][0].items() if value}


def _impatient(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same filesystem with few retries; pyarrow's default is 100 s on S3 and 15 minutes on GCS."""
    if filesystem.type_name not in ("s3", "gcs"):
        return filesystem
    options = _options(filesystem)
    if filesystem.type_name == "gcs":
        return fs.GcsFileSystem(**{**options, "retry_time_limit": timedelta(seconds=3 * CONNECT_S)})
    patience = {"connect_timeout": CONNECT_S, "request_timeout": CONNECT_S}
    return fs.S3FileSystem(
        **{**options, **patience, "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=3)}
    )


def display_path(filesystem: fs.FileSystem, path: str) -> str:
    """`path` as a user writes it: with the scheme of an object store."""
    scheme = OBJECT_STORES.get(unwrapped(filesystem).type_name)
    return f"{scheme}://{path}" if scheme else path


def is_object_store(filesystem: fs.FileSystem) -> bool:
    """Whether it has no folders, and a file appears as a whole."""
    return unwrapped(filesystem).type_name in OBJECT_STORES


def list_files(filesystem: fs.FileSystem, path: str) -> list[tuple[str, int]]:
    """Sorted (path, bytes) of all files under the folder `path`, or of the file `path`; [] if none."""
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    try:
        found = filesystem.get_file_info(selector)  # first: it is the one request of a full folder
    except NotADirectoryError:
        found = []
    found = found or [filesystem.get_file_info(path)]
    return sorted((item.path, item.size) for item in found if item.type == fs.FileType.File)


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_atomically(filesystem: fs.FileSystem, path: str, write: Callable[[Any], object]) -> None:
    """Calls `write(stream)` on a temporary file and renames it to `path`, which is never there in part.

    The temporary name is new each time, so that two workers can write the same file. An object store gets the
    content in one piece instead, since closing a stream after an error would publish a part of it.
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
        if filesystem.get_file_info(temporary).type == fs.FileType.File:
            filesystem.delete_file(temporary)
        raise


def write_bytes(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    write_atomically(filesystem, path, lambda stream: stream.write(content))


def write_text(filesystem: fs.FileSystem, path: str, text: str) -> None:
    write_bytes(filesystem, path, text.encode())


def copy(source: fs.FileSystem, start: str, target: fs.FileSystem, end: str) -> None:
    """Copies the file or folder `start` to `end`."""
    if is_object_store(target):
        _copy_to_store(source, start, target, end)
        return
    if source.get_file_info(start).type == fs.FileType.Directory:
        target.create_dir(end, recursive=True)  # pyarrow creates only the folders below it
    fs.copy_files(start, end, source_filesystem=source, destination_filesystem=target)


def _copy_to_store(source: fs.FileSystem, start: str, target: fs.FileSystem, end: str) -> None:
    """`fs.copy_files` would first ask for each folder on the way, which a store does not have."""

    def copy_one(path: str) -> None:
        with (
            source.open_input_stream(path) as stream,
            target.open_output_stream(end + path[len(start) :]) as sent,
        ):
            shutil.copyfileobj(stream, sent, 1 << 20)

    files = [path for path, _ in list_files(source, start)]
    with ThreadPoolExecutor(COPIERS) as pool:
        list(pool.map(copy_one, files))


@contextmanager
def local_copy(filesystem: fs.FileSystem, path: str) -> Iterator[Path]:
    """A local path of a file or folder: the path itself if it is local, else a temporary copy."""
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.rpartition("/")[2]
        copy(filesystem, path, fs.LocalFileSystem(), str(local))
        yield local


def sha256(filesystem: fs.FileSystem, path: str) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
