"""Storage on S3: files appear whole or not at all, and a bad address is told at once, without secrets."""

import hashlib
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import (
    RETRY_VARIABLE,
    copy,
    display_path,
    list_files,
    local_copy,
    open_filesystem,
    read_bytes,
    sha256,
    write_atomically,
    write_text,
)
from tests.helpers.flaky_proxy import Fault, flaky_proxy
from tests.helpers.s3_server import SECRET, s3_server


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


def below(filesystem: fs.FileSystem, root: str) -> list[tuple[str, int]]:
    return [(path.removeprefix(f"{root}/"), size) for path, size in list_files(filesystem, root)]


def test_what_is_written_is_read(bucket: str) -> None:
    filesystem, root = open_filesystem(f"{bucket}/written/")
    assert root == "bucket/written"
    assert display_path(filesystem, root) == f"{bucket}/written"
    data = bytes(range(256)) * 5000
    write_atomically(filesystem, f"{root}/deep/er/data.bin", lambda stream: stream.write(data))
    write_text(filesystem, f"{root}/a.txt", "first")
    write_text(filesystem, f"{root}/a.txt", "zwölf")
    assert read_bytes(filesystem, f"{root}/a.txt").decode() == "zwölf"
    assert sha256(filesystem, f"{root}/deep/er/data.bin") == hashlib.sha256(data).hexdigest()
    assert below(filesystem, root) == [("a.txt", 6), ("deep/er/data.bin", len(data))]


def test_list_files_skips_folders_and_takes_a_file_or_nothing(bucket: str) -> None:
    filesystem, root = open_filesystem(f"{bucket}/listed")
    filesystem.create_dir(f"{root}/empty", recursive=True)  # an object of its own, whose name ends with /
    for name in ("b.txt", "sub/a.txt", "a.txt"):
        write_text(filesystem, f"{root}/{name}", name)
    write_text(filesystem, f"{root}-beside/c.txt", "another folder with the same start")
    assert below(filesystem, root) == [("a.txt", 5), ("b.txt", 5), ("sub/a.txt", 9)]
    assert list_files(filesystem, f"{root}/b.txt") == [(f"{root}/b.txt", 5)]
    assert list_files(filesystem, f"{root}/absent") == []


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_the_old_file(bucket: str, error: BaseException) -> None:
    filesystem, root = open_filesystem(f"{bucket}/failed-{type(error).__name__}")

    def fail(stream: Any) -> None:
        stream.write(b"half" * (3 << 20))  # more than a part of an upload
        raise error

    with pytest.raises(type(error)):
        write_atomically(filesystem, f"{root}/file.bin", fail)
    assert list_files(filesystem, root) == []
    write_text(filesystem, f"{root}/file.bin", "old")
    with pytest.raises(type(error)):
        write_atomically(filesystem, f"{root}/file.bin", fail)
    assert below(filesystem, root) == [("file.bin", 3)]
    assert read_bytes(filesystem, f"{root}/file.bin") == b"old"


def test_folders_there_and_back(bucket: str, tmp_path: Path) -> None:
    filesystem, root = open_filesystem(f"{bucket}/copied")
    for name in ("model/config.json", "model/deep/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    copy(fs.LocalFileSystem(), str(tmp_path / "model"), filesystem, f"{root}/model")
    with local_copy(filesystem, f"{root}/model") as folder:
        files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}
        assert (folder / "config.json").is_file()
    assert not folder.exists()
    assert files == {"config.json": "model/config.json", "deep/weights": "model/deep/weights"}
    with local_copy(filesystem, f"{root}/model/config.json") as path:
        assert path.name == "config.json"
        assert path.read_text() == "model/config.json"
    with local_copy(fs.LocalFileSystem(), str(tmp_path / "model")) as folder:
        assert folder == tmp_path / "model"


def test_a_filesystem_travels_without_the_secret(bucket: str) -> None:
    filesystem, root = open_filesystem(f"{bucket}/travels")
    write_text(filesystem, f"{root}/a.txt", "kept")
    content = pickle.dumps((filesystem, root))
    assert SECRET.encode() not in content
    code = (
        "import pickle, sys\n"
        "filesystem, root = pickle.load(sys.stdin.buffer)\n"
        "print(filesystem.open_input_stream(root + '/a.txt').read().decode())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=content, env=environment, capture_output=True, timeout=60
    )
    assert done.stdout.decode().strip() == "kept", done.stderr.decode()


def test_the_endpoint_may_stand_in_the_uri(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    filesystem, root = open_filesystem(f"{bucket}/there?endpoint_override={address}&scheme=http")
    write_text(filesystem, f"{root}/a.txt", "kept")
    assert below(filesystem, root) == [("a.txt", 4)]


def refused(uri: str) -> str:
    """The one line that opening `uri` raises, within seconds."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        open_filesystem(uri)
    assert time.monotonic() - started < 20
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_bucket_is_told(bucket: str) -> None:
    text = refused("s3://nobody/runs")
    assert text == "cannot open s3://nobody/runs: there is no bucket nobody; create it first"
    assert refused("s3://") == "cannot open s3://: it names no bucket"
    assert "cannot open s3://bucket/x?colour=red: Unexpected query parameter" in refused(
        "s3://bucket/x?colour=red"
    )


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    text = refused(f"s3://key:{SECRET}@bucket/runs")
    assert text.startswith("s3://***@bucket/runs contains a password")
    assert "AWS_SECRET_ACCESS_KEY" in text


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_not_there_or_silent(
    bucket: str, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npdraw_dist.core.storage.CONNECT_S", 1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen(50)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert refused("s3://bucket/runs").startswith("cannot open s3://bucket/runs: ")


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("fault", "methods"), [("slow down", ("GET", "PUT", "POST", "DELETE", "HEAD")), ("reset", ("GET", "PUT"))]
)
def test_a_server_that_refuses_and_breaks_connections(
    bucket: str, fault: Fault, methods: tuple[str, ...], tmp_path: Path
) -> None:
    data = bytes(range(256)) * 4000
    big = data * 12  # two parts of an upload
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(big)
    with flaky_proxy() as faults:
        filesystem, root = open_filesystem(f"{bucket}/flaky-{fault}".replace(" ", "-"))
        assert display_path(filesystem, f"{root}/a") == f"s3://{root}/a"
        filesystem = pickle.loads(pickle.dumps(filesystem))  # the strategy travels
        faults.seen.clear()
        faults.made.clear()
        # More than the three attempts that pyarrow makes by default.
        faults.decide = lambda method, path, number: fault if method in methods and number < 4 else None
        write_atomically(filesystem, f"{root}/a", lambda stream: stream.write(data))
        copy(fs.LocalFileSystem(), str(tmp_path / "model"), filesystem, f"{root}/model")
        assert below(filesystem, root) == [("a", len(data)), ("model/weights", len(big))]
        assert read_bytes(filesystem, f"{root}/a") == data
        assert read_bytes(filesystem, f"{root}/model/weights") == big
        filesystem.delete_file(f"{root}/a")
        filesystem.delete_dir(f"{root}/model")
        assert list_files(filesystem, root) == []
        assert faults.made == Counter(dict.fromkeys(methods, 4))


def test_the_limit_comes_from_the_environment(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETRY_VARIABLE, "0")
    with flaky_proxy() as faults:
        filesystem, root = open_filesystem(f"{bucket}/impatient")
        write_text(filesystem, f"{root}/a", "kept")
        faults.decide = lambda method, path, number: "slow down"
        with pytest.raises(OSError, match="HTTP status 503"):
            read_bytes(filesystem, f"{root}/a")
        assert sum(faults.made.values()) == 1
