"""The identity of a data set: what each source counts as its files, and which changes are noticed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data import identity
from npdraw_dist.data.identity import Identity, InputFile, compare, identify
from npdraw_dist.data.shards import Source
from npdraw_dist.data.sources import open_source
from tests.helpers.image_files import images, picture, touch

MB = 1.0  # more than all files here
LOCAL = fs.LocalFileSystem()


def source(path: Path | str) -> Source:
    data = DataConfig(source="imagefolder", path=str(path), image_size=8, channels=1, test_fraction=0)
    return open_source(data, 0)


def change(folder: Path, how: str) -> None:
    first, second = folder / "class" / "0.bmp", folder / "class" / "1.bmp"
    if how == "content":
        picture(first, 99)
        touch(first)
    elif how == "swapped":
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
        touch(first)
        touch(second)
    elif how == "size":
        first.write_bytes(first.read_bytes() + b"x")
    elif how == "added":
        picture(folder / "class" / "9.bmp", 9)
    elif how == "deleted":
        first.unlink()
    elif how == "renamed":
        first.rename(first.with_name("zero.bmp"))
    elif how == "all":
        for path in (folder / "class").iterdir():
            path.write_bytes(b"another" * 9)
    elif how == "notes":
        (folder / "notes.txt").write_text("no image")
    else:
        touch(first)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("content", "class/0.bmp has another content"),
        ("swapped", "class/0.bmp has another content and class/1.bmp has another content"),
        ("size", "class/0.bmp has another size"),
        ("added", "class/9.bmp is new"),
        ("deleted", "class/0.bmp is missing"),
        ("renamed", "class/0.bmp is missing and class/zero.bmp is new"),
        ("all", "class/0.bmp has another size (and 3 more)"),
        ("notes", ""),
        ("touched", ""),
    ],
)
def test_changes_are_named(tmp_path: Path, how: str, said: str) -> None:
    before = identify(source(images(tmp_path)), MB)
    change(tmp_path, how)
    found = compare(before, source(tmp_path), MB)
    assert str(found) == said
    assert bool(found.changes) == bool(said)
    assert (identify(source(tmp_path), MB).digest == before.digest) == (not said)


def test_a_moved_folder_is_the_same_with_the_times_of_now(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")), MB)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    for path in (tmp_path / "b" / "class").iterdir():
        touch(path)
    found = compare(before, source(tmp_path / "b"), MB)
    assert found.changes == ()
    assert found.identity == identify(source(tmp_path / "b"), MB) != before
    assert found.identity.digest == before.digest


def test_another_folder_with_the_same_sizes_and_times_is_another_data_set(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")), MB)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "b" / "class" / "2.bmp"
    at = other.stat().st_mtime_ns
    picture(other, 77)
    os.utime(other, ns=(at, at))
    assert compare(before, source(tmp_path / "b"), MB).changes == ("class/2.bmp has another content",)
    # In place, equal size and time count as the same: this is what makes a start cheap.
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert compare(before, source(tmp_path / "a"), MB).changes == ()


def test_no_file_of_equal_size_and_time_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify(source(images(tmp_path)), MB)
    read: list[str] = []
    true = identity.sha256

    def counted(filesystem: fs.FileSystem, path: str) -> str:
        read.append(path)
        return true(filesystem, path)

    monkeypatch.setattr(identity, "sha256", counted)
    assert compare(before, source(tmp_path), MB).changes == ()
    assert read == []
    change(tmp_path, "touched")
    assert compare(before, source(tmp_path), MB).changes == ()
    assert read == [str(tmp_path / "class" / "0.bmp")]


def test_beyond_checksum_mb_size_and_time_decide(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")), 1e-3)
    assert {file.sha256 for file in before.files} == {None}
    assert compare(before, source(tmp_path / "a"), MB).changes == ()
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with their times
    assert compare(before, source(tmp_path / "b"), MB).changes == ()
    change(tmp_path / "a", "touched")
    (told,) = compare(before, source(tmp_path / "a"), MB).changes
    assert told == "class/0.bmp has another time, and no checksum tells whether its content is the same"


def test_a_checksum_that_is_too_dear_to_make_again(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path)), MB)
    assert compare(before, source(tmp_path), 0).changes == ()
    change(tmp_path, "touched")
    assert "no checksum tells" in str(compare(before, source(tmp_path), 0))


def test_the_record_comes_back(tmp_path: Path) -> None:
    made = identify(source(images(tmp_path / "in")), MB)
    path = str(tmp_path / "inputs.parquet")
    identity.save(made, LOCAL, path)
    assert identity.load(LOCAL, path) == made
    assert identity.load_digest(LOCAL, path) == made.digest
    assert identity.from_json(identity.to_json(made)) == made
    mixed = Identity((InputFile("a", 1), InputFile("b", 2, 3), InputFile("c", 4, None, "e")), "here")
    identity.save(mixed, LOCAL, path)
    assert identity.load(LOCAL, path) == mixed


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_record_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "inputs.parquet"
    identity.save(Identity((InputFile("a", 1),)), LOCAL, str(path))
    path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"")
    read: Callable[[fs.FileSystem, str], object]
    for read in (identity.load, identity.load_digest):
        with pytest.raises(UserError, match=r"inputs\.parquet is unreadable"):
            read(LOCAL, str(path))


def test_the_digest_is_of_path_size_and_checksum_or_time() -> None:
    files = (InputFile("a", 1, 5, "x"), InputFile("b", 2, 6, None))
    digest = Identity(files, "here").digest
    assert len(digest) == 64
    assert Identity(files[::-1], "there").digest == digest
    same = (InputFile("a", 1, 7, "x"), files[1])
    assert Identity(same).digest == digest
    for other in (
        (InputFile("c", 1, 5, "x"), files[1]),
        (InputFile("a", 2, 5, "x"), files[1]),
        (InputFile("a", 1, 5, "y"), files[1]),
        (files[0], InputFile("b", 2, 7, None)),
        files[:1],
    ):
        assert Identity(other).digest != digest
