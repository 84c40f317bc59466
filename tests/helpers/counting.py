"""A filesystem that counts its requests and the bytes that it moves."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

COUNTED = ("get_file_info", "create_dir", "delete_dir", "delete_file", "move", "copy_file", "open_")


class _File:
    """A file of Python whose reads, and read and written bytes, are counted."""

    def __init__(self, file: Any, counting: "Counting") -> None:
        self.file, self.counting = file, counting

    def read(self, nbytes: int = -1) -> bytes:
        content = bytes(self.file.read(nbytes))
        self.counting.count("reads", 1)
        self.counting.count("bytes", len(content))
        return content

    def write(self, content: Any) -> int:
        self.counting.count("bytes", len(content))
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class Counting(fs.FSSpecHandler):  # type: ignore[misc]
    """The local files as a remote store. counts: numbers so far, without those in `uncounted` blocks."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())
        self.counts: Counter[str] = Counter()
        self.counted = True

    def count(self, what: str, number: int) -> None:
        if self.counted:
            self.counts[what] += number

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Nothing in the block is counted."""
        self.counted = False
        yield
        self.counted = True

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith(COUNTED):
            return found

        def call(*arguments: Any) -> Any:
            self.count("requests", 1)
            return found(*arguments)

        return call

    def open_input_stream(self, path: str) -> Any:
        return pa.PythonFile(_File(self.fs.open(path, "rb"), self), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_File(self.fs.open(path, "wb"), self), mode="w")
