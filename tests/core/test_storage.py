"""Files appear whole or not at all."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import (
    list_files,
    open_filesystem,
    read_bytes,
    sha256,
    write_atomically,
    write_text,
)


def test_written_files_are_whole_and_alone(tmp_path: Path) -> None:
    filesystem, root = open_filesystem(str(tmp_path))
    target = f"{root}/deep/er/file.txt"
    write_text(filesystem, target, "first")
    write_text(filesystem, target, "zwölf")
    assert Path(target).read_text(encoding="utf-8") == "zwölf"
    assert read_bytes(filesystem, target) == "zwölf".encode()
    assert [p.name for p in Path(target).parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    filesystem, root = open_filesystem(str(tmp_path))

    def fail(stream: Any) -> None:
        stream.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(filesystem, f"{root}/file.bin", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    filesystem, root = open_filesystem(str(tmp_path))
    write_text(filesystem, f"{root}/file.txt", "old")

    def fail(stream: Any) -> None:
        stream.write(b"new")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_atomically(filesystem, f"{root}/file.txt", fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file.txt", "old")]


def test_the_target_is_not_there_while_it_is_written(tmp_path: Path) -> None:
    filesystem, root = open_filesystem(str(tmp_path))
    seen: list[list[str]] = []

    def write(stream: Any) -> None:
        stream.write(b"x")
        seen.append([p.name for p in tmp_path.iterdir()])

    for _ in range(2):
        write_atomically(filesystem, f"{root}/{len(seen)}.bin", write)
    beside = [name for names in seen for name in names if name.endswith(".part")]
    assert "0.bin" not in seen[0]
    assert "1.bin" not in seen[1]
    assert len(set(beside)) == 2


def test_list_files_is_sorted_and_takes_a_file_or_nothing(tmp_path: Path) -> None:
    for name, size in [("b.txt", 3), ("sub/a.txt", 5), ("a.txt", 1)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    filesystem, root = open_filesystem(str(tmp_path))
    found = [(path.removeprefix(f"{root}/"), size) for path, size in list_files(filesystem, root)]
    assert found == [("a.txt", 1), ("b.txt", 3), ("sub/a.txt", 5)]
    assert list_files(filesystem, f"{root}/b.txt") == [(f"{root}/b.txt", 3)]
    assert list_files(filesystem, f"{root}/absent") == []


def test_sha256_of_more_than_a_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    filesystem, root = open_filesystem(f"file://{tmp_path}")
    assert sha256(filesystem, f"{root}/data") == hashlib.sha256(data).hexdigest()


def test_a_uri_of_fsspec_and_one_of_nobody() -> None:
    filesystem, path = open_filesystem("memory://bucket/run/")
    write_text(filesystem, f"{path}/a.txt", "kept")
    assert read_bytes(filesystem, f"{path}/a.txt") == b"kept"
    with pytest.raises(UserError, match="cannot open nowhere://x"):
        open_filesystem("nowhere://x")
