"""A storage that fails now and then (throttled, reset, slow): its requests are repeated.

Pauses grow and are random, so that many workers do not come back at once. A request that can never succeed
(no such file, no permission, a full disk) fails at once. What is repeated: each request on names; an upload
as a whole, from a copy in memory or on disk; a read from where it broke off.

pyarrow's own strategies do not serve: they are lost when a filesystem is pickled for a worker, count attempts
in place of seconds, and are those of S3 and GCS alone.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

Result = TypeVar("Result")

# Seconds for which a request is repeated; the variable holds in this process and those that it starts.
LIMIT_VARIABLE = "NPDRAW_STORAGE_RETRY_S"
LIMIT_S = 300.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
IN_MEMORY = 64 << 20  # bytes of an upload; a longer one waits on disk

NEVER = (
    *(FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError),
    io.UnsupportedOperation,
)
NEVER_NUMBERS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPERM, errno.EACCES),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EXDEV),
    *(errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.EBADF, errno.ENOSYS, errno.ENOTSUP),
}
STATUS = re.compile(r"HTTP status (\d{3})")
LATER = {408, 409, 425, 429}  # statuses below 500 that say: try again
TIMEOUT = re.compile(r"REQUEST_?TIMEOUT\b", re.I)  # S3 answers it with status 400
NEVER_TEXT = re.compile(
    r"NO_?SUCH_?(BUCKET|KEY|UPLOAD)|ACCESS_?DENIED|INVALID_?ACCESS_?KEY|SIGNATURE_?DOES_?NOT_?MATCH|EXPIRED_?TOKEN"
    r"|PERMISSION_?DENIED|UNAUTHENTICATED|INVALID_?ARGUMENT|Not a regular file|does not exist",
    re.I,
)


def limit() -> float:
    return float(os.environ.get(LIMIT_VARIABLE, LIMIT_S))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, OSError) or isinstance(error, NEVER) or error.errno in NEVER_NUMBERS:
        return False
    text = str(error)
    status = STATUS.search(text)
    if status is not None and not TIMEOUT.search(text):
        return int(status[1]) >= 500 or int(status[1]) in LATER
    return not NEVER_TEXT.search(text)


def with_retries(filesystem: fs.FileSystem, limit_s: float | None = None) -> fs.FileSystem:
    """The filesystem with repeated requests; itself if it is local. limit_s: default `limit()`."""
    if isinstance(filesystem, fs.LocalFileSystem):
        return filesystem
    return fs.PyFileSystem(RetryingHandler(filesystem, limit() if limit_s is None else limit_s))


def unwrapped(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The filesystem below `with_retries`."""
    handler = getattr(filesystem, "handler", None)
    return handler.inner if isinstance(handler, RetryingHandler) else filesystem


class RetryingHandler(fs.FileSystemHandler):  # type: ignore[misc]
    """pyarrow's methods of a filesystem, each passed on until it succeeds, for at most `limit_s` seconds.

    Says once, in a line, that the storage fails.
    """

    def __init__(self, inner: fs.FileSystem, limit_s: float) -> None:
        self.inner, self.limit_s = inner, limit_s
        self._told = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetryingHandler) and bool(self.inner == other.inner)

    __hash__ = None  # type: ignore[assignment]  # as pyarrow's own handlers

    def repeat(self, request: Callable[[], Result]) -> Result:
        """What `request` returns. Raises its last error, at once if it can never succeed."""
        attempts = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_before_delay(self.limit_s),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            before_sleep=self._tell,
            reraise=True,
        )
        result: Result = attempts(request)
        return result

    def _tell(self, state: RetryCallState) -> None:
        if not self._told and state.outcome is not None:
            self._told = True
            reason = " ".join(str(state.outcome.exception()).split())
            print(
                f"the storage fails ({reason[:300]}); a request is repeated for up to {self.limit_s:.0f} s "
                f"({LIMIT_VARIABLE})",
                file=sys.stderr,
                flush=True,
            )

    def _repeat_removal(self, request: Callable[[], None]) -> None:
        """A removal that finds nothing was done by an earlier attempt, whose answer was lost."""
        sent = False

        def attempt() -> None:
            nonlocal sent
            try:
                again, sent = sent, True
                request()
            except FileNotFoundError:
                if not again:
                    raise

        self.repeat(attempt)

    def get_type_name(self) -> str:
        return f"retrying+{self.inner.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return list(self.repeat(lambda: self.inner.get_file_info(paths)))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return list(self.repeat(lambda: self.inner.get_file_info(selector)))

    def create_dir(self, path: str, recursive: bool) -> None:
        self.repeat(lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._repeat_removal(lambda: self.inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self.repeat(lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        self.repeat(lambda: self.inner.delete_dir_contents("/", accept_root_dir=True))

    def delete_file(self, path: str) -> None:
        self._repeat_removal(lambda: self.inner.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._repeat_removal(lambda: self.inner.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self.repeat(lambda: self.inner.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Source(self, path, self.inner.open_input_stream), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Source(self, path, self.inner.open_input_file), mode="r")

    def open_output_stream(self, path: str, metadata: dict[str, str]) -> pa.NativeFile:
        return pa.PythonFile(_Upload(self, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str]) -> pa.NativeFile:
        return self.repeat(lambda: self.inner.open_append_stream(path, metadata=metadata))


class _Source:
    """A file for reading, which is opened again where a read broke off."""

    def __init__(
        self, handler: RetryingHandler, path: str, open_first: Callable[[str], pa.NativeFile]
    ) -> None:
        self._handler, self._path = handler, path
        self._file: pa.NativeFile | None = handler.repeat(lambda: open_first(path))
        self._position = self._at = 0  # next read; the open file, which cannot tell it
        self.closed = False

    def read(self, nbytes: int | None = None) -> bytes:
        def attempt() -> bytes:
            if self._file is None:
                self._file, self._at = self._handler.inner.open_input_file(self._path), 0
            try:
                if self._at != self._position:
                    self._file.seek(self._position)
                    self._at = self._position
                return bytes(self._file.read(None if nbytes is None or nbytes < 0 else nbytes))
            except OSError:
                self._file = None
                raise

        content = self._handler.repeat(attempt)
        self._position += len(content)
        self._at = self._position
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._size()
        self._position = offset
        return offset

    def _size(self) -> int:
        if self._file is not None and self._file.seekable():
            return int(self._file.size())  # was asked for when the file was opened
        return int(self._handler.repeat(lambda: self._handler.inner.get_file_info(self._path)).size)

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self.closed = True
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was read is right
                self._file.close()


class _Upload:
    """A file for writing, which is sent when it is closed.

    It is no io.IOBase: such a one closes itself, and would send a part, when it is forgotten after an error.
    """

    def __init__(self, handler: RetryingHandler, path: str, metadata: dict[str, str]) -> None:
        self._handler, self._path, self._metadata = handler, path, metadata
        self._content = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # closed after it was sent
        self.closed = False

    def write(self, content: Any) -> int:
        return self._content.write(memoryview(content))

    def tell(self) -> int:
        return self._content.tell()

    def flush(self) -> None:
        """Nothing is sent in part."""

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with self._content:
            self._handler.repeat(self._send)

    def _send(self) -> None:
        self._content.seek(0)
        with self._handler.inner.open_output_stream(self._path, metadata=self._metadata) as stream:
            shutil.copyfileobj(self._content, stream, 1 << 20)
