"""Files appear whole or not at all, on a disk and on S3; an address that cannot be used fails at once."""

import hashlib
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import (
    RETRY_VARIABLE,
    copy,
    display_path,
    list_files,
    local_copy,
    open_filesystem,
    read_bytes,
    require_writable,
    sha256,
    write_atomically,
    write_text,
)
from tests.helpers.s3 import SECRET, Fault, flaky_proxy

LOCAL = fs.LocalFileSystem()


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else f"{bucket}/{tmp_path.name}"


def below(filesystem: fs.FileSystem, root: str) -> list[tuple[str, int]]:
    return [(path.removeprefix(f"{root}/"), size) for path, size in list_files(filesystem, root)]


def test_what_is_written_is_read(uri: str) -> None:
    filesystem, root = open_filesystem(f"{uri}/")
    assert display_path(filesystem, root) == uri
    data = bytes(range(256)) * 5000
    write_atomically(filesystem, f"{root}/deep/er/data.bin", lambda stream: stream.write(data))
    write_text(filesystem, f"{root}/a.txt", "first")
    write_text(filesystem, f"{root}/a.txt", "zwölf")
    assert read_bytes(filesystem, f"{root}/a.txt") == "zwölf".encode()
    assert sha256(filesystem, f"{root}/deep/er/data.bin") == hashlib.sha256(data).hexdigest()
    assert below(filesystem, root) == [("a.txt", 6), ("deep/er/data.bin", len(data))]


def test_list_files_skips_folders_and_takes_a_file_or_nothing(uri: str) -> None:
    filesystem, root = open_filesystem(uri)
    filesystem.create_dir(f"{root}/empty", recursive=True)  # on S3 an object of its own, named with a /
    for name in ("b.txt", "sub/a.txt", "a.txt"):
        write_text(filesystem, f"{root}/{name}", name)
    write_text(filesystem, f"{root}-beside/c.txt", "another folder with the same start")
    assert below(filesystem, root) == [("a.txt", 5), ("b.txt", 5), ("sub/a.txt", 9)]
    assert list_files(filesystem, f"{root}/b.txt") == [(f"{root}/b.txt", 5)]
    assert list_files(filesystem, f"{root}/absent") == []


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_the_old_file(uri: str, error: BaseException) -> None:
    filesystem, root = open_filesystem(uri)

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


def test_the_target_is_not_there_while_it_is_written(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def write(stream: Any) -> None:
        stream.write(b"x")
        seen.append([path.name for path in tmp_path.iterdir()])

    for _ in range(2):
        write_atomically(LOCAL, f"{tmp_path}/{len(seen)}.bin", write)
    assert "0.bin" not in seen[0]
    assert "1.bin" not in seen[1]
    assert len({name for names in seen for name in names if name.endswith(".part")}) == 2


def test_folders_there_and_back(uri: str, tmp_path: Path) -> None:
    filesystem, root = open_filesystem(uri)
    for name in ("model/config.json", "model/deep/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    copy(LOCAL, str(tmp_path / "model"), filesystem, f"{root}/model")
    for name, inner in (("model", "deep/weights"), ("model/deep/weights", "")):
        with local_copy(filesystem, f"{root}/{name}") as path:
            assert path.name == Path(name).name
            assert (path / inner).read_text() == "model/deep/weights"
        assert path.exists() == isinstance(filesystem, fs.LocalFileSystem)


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
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, input=content, env=environment, capture_output=True, timeout=60)
    assert done.stdout.decode().strip() == "kept", done.stderr.decode()


def test_the_endpoint_may_stand_in_the_uri(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    filesystem, root = open_filesystem(f"{bucket}/there?endpoint_override={address}&scheme=http")
    write_text(filesystem, f"{root}/a.txt", "kept")
    assert below(filesystem, root) == [("a.txt", 4)]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nowhere://x", "cannot open nowhere://x"),
        ("s3://nobody/runs", "no bucket nobody"),
        ("s3://", "does not name a bucket"),
        ("s3://bucket/x?colour=red", "colour"),
        (f"s3://key:{SECRET}@bucket/runs", "AWS_SECRET_ACCESS_KEY"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_a_bad_address_fails_without_secrets(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        open_filesystem(uri)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answers", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("bucket")
def test_a_server_that_is_not_there_or_silent(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npdraw_dist.system.storage.CONNECT_S", 1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen(50)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot open s3://bucket/runs: "):
            open_filesystem("s3://bucket/runs")


@pytest.mark.parametrize(
    ("fault", "methods"),
    [
        ("slow down", ("GET", "PUT", "POST", "DELETE", "HEAD")),
        pytest.param("reset", ("GET", "PUT"), marks=pytest.mark.slow),
    ],
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
        filesystem = pickle.loads(pickle.dumps(filesystem))  # the strategy travels
        faults.seen.clear()
        faults.made.clear()
        # More than the three attempts that pyarrow makes by default.
        faults.decide = lambda method, path, number: fault if method in methods and number < 4 else None
        write_atomically(filesystem, f"{root}/a", lambda stream: stream.write(data))
        copy(LOCAL, str(tmp_path / "model"), filesystem, f"{root}/model")
        assert below(filesystem, root) == [("a", len(data)), ("model/weights", len(big))]
        assert read_bytes(filesystem, f"{root}/a") == data
        assert read_bytes(filesystem, f"{root}/model/weights") == big
        filesystem.delete_file(f"{root}/a")
        filesystem.delete_dir(f"{root}/model")
        assert list_files(filesystem, root) == []
        assert faults.made == Counter(dict.fromkeys(methods, 4))


def test_the_limit_of_retries_comes_from_the_environment(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RETRY_VARIABLE, "0")
    with flaky_proxy() as faults:
        filesystem, root = open_filesystem(f"{bucket}/impatient")
        write_text(filesystem, f"{root}/a", "kept")
        faults.decide = lambda method, path, number: "slow down"
        with pytest.raises(OSError, match="HTTP status 503"):
            read_bytes(filesystem, f"{root}/a")
        assert sum(faults.made.values()) == 1


def test_where_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    require_writable(str(tmp_path / "file"))  # to be replaced
    require_writable(str(tmp_path / "a" / "b" / "new.json"))
    require_writable(str(tmp_path / "a" / "b"), folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for wrong, folder, said in (
        ("", False, "is a folder"),
        ("file/new.json", False, "file is a file"),
        ("file/a/new.json", False, "file is a file"),
        ("file", True, "file is a file"),
    ):
        with pytest.raises(UserError, match=said):
            require_writable(str(tmp_path / wrong), folder=folder)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=f"no permission to write in {tmp_path}"):
        require_writable(str(tmp_path / "new"), folder=True)
