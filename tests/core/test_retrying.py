"""Requests to a storage that fails now and then are repeated; those that can never succeed are not."""

import errno
import io
import pickle
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from npdraw_dist.core import retrying
from npdraw_dist.core.retrying import is_transient, limit, unwrapped, with_retries
from npdraw_dist.core.storage import (
    copy,
    display_path,
    list_files,
    open_filesystem,
    read_bytes,
    sha256,
    write_bytes,
)
from tests.helpers.flaky_proxy import Fault, Faults, flaky_proxy
from tests.helpers.s3_server import SECRET, s3_server

DATA = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_S", 0.001)


class Broken:
    """A file whose first reads or writes break, each after some bytes; bytes that were written are lost."""

    def __init__(self, file: Any, fails: Callable[[str], None]) -> None:
        self.file, self.fails, self.closed = file, fails, False

    def read(self, nbytes: int) -> bytes:
        self.fails("read")
        return bytes(self.file.read(min(nbytes, 1000)))

    def write(self, content: Any) -> int:
        self.fails("write")
        return int(self.file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def close(self) -> None:
        self.closed = True
        self.fails("close")
        self.file.close()


class Flaky(fs.FSSpecHandler):  # type: ignore[misc]
    """A filesystem in memory. Each kind of request fails `failures` times; counts them."""

    def __init__(self, error: Callable[[], OSError], failures: int = 2) -> None:
        inner, self.root = open_filesystem(f"memory://{uuid.uuid4().hex}")
        super().__init__(unwrapped(inner).handler.fs)
        self.error, self.failures = error, failures
        self.requests: Counter[str] = Counter()

    def fail(self, name: str) -> None:
        self.requests[name] += 1
        if self.requests[name] <= self.failures:
            raise self.error()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("get_file_info", "create_dir", "delete_dir", "delete_file", "move", "copy_file") or (
            name.startswith(("get_file_info_", "open_"))
        ):

            def call(*arguments: Any) -> Any:
                self.fail(name)
                return found(*arguments)

            return call
        return found

    def open_input_stream(self, path: str) -> Any:
        return pa.PythonFile(Broken(self.fs.open(path, "rb"), self.fail), mode="r")

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(Broken(self.fs.open(path, "rb"), self.fail), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(Broken(self.fs.open(path, "wb"), self.fail), mode="w")


def make(error: Callable[[], OSError] = ConnectionResetError, failures: int = 2) -> tuple[Flaky, Any, str]:
    """The filesystem that fails, the same with retries, and a folder on it."""
    flaky = Flaky(error, failures)
    return flaky, with_retries(fs.PyFileSystem(flaky), 60), flaky.root


REQUESTS: dict[str, Callable[[fs.FileSystem, str], object]] = {
    "get_file_info": lambda f, root: f.get_file_info(f"{root}/a"),
    "get_file_info_selector": lambda f, root: f.get_file_info(fs.FileSelector(root)),
    "create_dir": lambda f, root: f.create_dir(f"{root}/new"),
    "delete_dir": lambda f, root: f.delete_dir(f"{root}/folder"),
    "delete_file": lambda f, root: f.delete_file(f"{root}/a"),
    "move": lambda f, root: f.move(f"{root}/a", f"{root}/b"),
    "copy_file": lambda f, root: f.copy_file(f"{root}/a", f"{root}/b"),
    "open_input_stream": lambda f, root: f.open_input_stream(f"{root}/a"),
    "open_input_file": lambda f, root: f.open_input_file(f"{root}/a"),
    "open_output_stream": lambda f, root: f.open_output_stream(f"{root}/b").close(),
}


def filled(flaky: Flaky, root: str) -> None:
    for name in ("a", "folder/c"):
        flaky.fs.pipe_file(f"{root}/{name}", DATA)


@pytest.mark.parametrize("name", REQUESTS)
def test_each_request_is_repeated(name: str) -> None:
    flaky, filesystem, root = make()
    filled(flaky, root)
    REQUESTS[name](filesystem, root)
    assert flaky.requests[name] == (5 if name == "open_output_stream" else 3)  # its close fails too


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_cannot_succeed_is_not(name: str) -> None:
    flaky, filesystem, root = make(lambda: PermissionError(errno.EACCES, "no"))
    filled(flaky, root)
    with pytest.raises(PermissionError):
        REQUESTS[name](filesystem, root)
    assert flaky.requests[name] == 1


def test_an_upload_is_repeated_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "IN_MEMORY", 1000)  # the rest is on disk
    flaky, filesystem, root = make()
    write_bytes(filesystem, f"{root}/a", DATA)
    assert flaky.requests["write"] > 2
    assert flaky.requests["open_output_stream"] == 5  # opening, then writing failed twice
    assert flaky.fs.cat_file(f"{root}/a") == DATA


def test_a_read_goes_on_where_it_broke_off() -> None:
    flaky, filesystem, root = make()
    filled(flaky, root)
    with filesystem.open_input_stream(f"{root}/a") as stream:
        found = stream.read(500)
        flaky.requests["read"] = 0  # breaks again
        found += stream.read()
    assert found == DATA
    with filesystem.open_input_file(f"{root}/a") as file:
        flaky.requests["read"] = 0
        file.seek(300)
        assert file.read(10) == DATA[300:310]
        assert file.size() == len(DATA)
        file.seek(-5, 2)
        assert file.read() == DATA[-5:]
    assert sha256(filesystem, f"{root}/a") == sha256(unwrapped(filesystem), f"{root}/a")


def test_a_storage_that_works_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    flaky, filesystem, root = make(failures=0)
    filled(flaky, root)
    assert read_bytes(filesystem, f"{root}/a") == DATA
    with filesystem.open_input_stream(f"{root}/a") as stream:
        assert b"".join(iter(lambda: stream.read(900), b"")) == DATA
    assert flaky.requests["open_input_stream"] == 2
    assert flaky.requests["open_input_file"] == 0
    write_bytes(filesystem, f"{root}/b", DATA)
    assert flaky.requests["open_output_stream"] == 1
    assert capsys.readouterr().err == ""


def test_a_removal_whose_answer_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    flaky, filesystem, root = make(failures=0)
    filled(flaky, root)
    remove = flaky.fs.rm

    def lose_answer(path: str, **options: Any) -> None:
        remove(path, **options)
        raise ConnectionResetError

    monkeypatch.setattr(flaky.fs, "rm", lose_answer)
    filesystem.delete_file(f"{root}/a")
    filesystem.delete_dir(f"{root}/folder")
    assert list_files(filesystem, root) == []
    with pytest.raises(FileNotFoundError):
        filesystem.delete_file(f"{root}/a")


def test_it_gives_up_and_says_once_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    flaky = Flaky(lambda: OSError("the net is\ndown"), 10**9)
    filesystem = with_retries(fs.PyFileSystem(flaky), 0.05)
    for _ in range(2):
        with pytest.raises(OSError, match="the net is"):
            filesystem.get_file_info("a")
    assert flaky.requests["get_file_info"] > 2
    assert capsys.readouterr().err == (
        "the storage fails (the net is down); a request is repeated for up to 0 s (NPDRAW_STORAGE_RETRY_S)\n"
    )


def test_no_time_is_no_second_attempt() -> None:
    flaky = Flaky(ConnectionResetError)
    with pytest.raises(ConnectionResetError):
        with_retries(fs.PyFileSystem(flaky), 0).get_file_info("a")
    assert flaky.requests["get_file_info"] == 1


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EIO, "input/output error"), True),
        (OSError("AWS Error SLOW_DOWN during PutObject operation (HTTP status 503): Reduce"), True),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28"), True),
        (OSError("AWS Error REQUEST_TIMEOUT during PutObject operation (HTTP status 400)"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 429) during GetObject"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation (HTTP status 403)"), False),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: no such bucket"), False),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "no"), False),
        (OSError(errno.ENOSPC, "no space left on device"), False),
        (OSError(errno.EDQUOT, "quota"), False),
        (io.UnsupportedOperation("not seekable"), False),
        (ValueError("no storage"), False),
    ],
    ids=str,
)
def test_what_may_succeed_later(error: BaseException, transient: bool) -> None:
    assert is_transient(error) == transient


def test_the_limit_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(retrying.LIMIT_VARIABLE, raising=False)
    assert limit() == 300
    monkeypatch.setenv(retrying.LIMIT_VARIABLE, "7.5")
    filesystem, _ = open_filesystem("memory://limited")
    assert filesystem.handler.limit_s == 7.5


def test_a_local_filesystem_is_as_it_was(tmp_path: Path) -> None:
    for uri in (str(tmp_path), tmp_path.as_uri()):
        assert isinstance(open_filesystem(uri)[0], fs.LocalFileSystem)


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    with s3_server(), flaky_proxy() as found:
        yield found


@pytest.mark.parametrize(
    ("fault", "methods"), [("slow down", ("GET", "PUT", "POST", "DELETE", "HEAD")), ("reset", ("GET", "PUT"))]
)
def test_an_s3_server_that_refuses_and_breaks_connections(
    faults: Faults, fault: Fault, methods: tuple[str, ...], tmp_path: Path
) -> None:
    filesystem, root = open_filesystem(f"s3://bucket/flaky-{fault}".replace(" ", "-"))
    assert display_path(filesystem, f"{root}/a") == f"s3://{root}/a"
    big = DATA * 12  # two parts of an upload
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(big)
    faults.seen.clear()
    faults.made.clear()
    # pyarrow itself makes three attempts.
    faults.decide = lambda method, path, number: fault if method in methods and number < 3 else None
    try:
        write_bytes(filesystem, f"{root}/a", DATA)
        copy(fs.LocalFileSystem(), str(tmp_path / "model"), filesystem, f"{root}/model")
        assert list_files(filesystem, root) == [(f"{root}/a", len(DATA)), (f"{root}/model/weights", len(big))]
        assert read_bytes(filesystem, f"{root}/a") == DATA
        assert read_bytes(filesystem, f"{root}/model/weights") == big
        filesystem.delete_file(f"{root}/a")
        filesystem.delete_dir(f"{root}/model")
        assert list_files(filesystem, root) == []
    finally:
        faults.decide = lambda method, path, number: None
    assert faults.made == Counter(dict.fromkeys(methods, 3))


def test_it_travels_with_its_limit_and_without_the_secret(faults: Faults) -> None:
    filesystem, root = open_filesystem("s3://bucket/travels")
    content = pickle.dumps(filesystem)
    assert SECRET.encode() not in content
    again = pickle.loads(content)
    assert again == filesystem
    assert again.handler.limit_s == filesystem.handler.limit_s
    write_bytes(again, f"{root}/a", b"kept")
    assert read_bytes(filesystem, f"{root}/a") == b"kept"
    assert unwrapped(again).type_name == "s3"
