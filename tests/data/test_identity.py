"""The identity of a data set: what each source counts as its files, and which changes are noticed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from npdraw_dist.data.identity import Identity, InputFile, compare, identify
from pyarrow import fs
from sklearn.datasets import load_digits

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data import identity
from npdraw_dist.data.shards import Source, open_source
from tests.helpers.image_files import images, picture, touch, write_tar

LOCAL = fs.LocalFileSystem()


def source(path: Path | str) -> Source:
    data = DataConfig(source="imagefolder", path=str(path), image_size=8, channels=1, test_fraction=0)
    return open_source(data, 0)


def swap(folder: Path) -> None:
    first, second = folder / "0.bmp", folder / "1.bmp"
    one, two = first.read_bytes(), second.read_bytes()
    for path, content in ((first, two), (second, one)):
        path.write_bytes(content)
        touch(path)


def replace_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"another" * 9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap, "class/0.bmp has another content and class/1.bmp has another content"),
        (lambda folder: picture(folder / "9.bmp", 9), "class/9.bmp is new"),
        (lambda folder: (folder / "0.bmp").unlink(), "class/0.bmp is missing"),
        (
            lambda folder: (folder / "0.bmp").rename(folder / "z.bmp"),
            "class/0.bmp is missing and class/z.bmp is new",
        ),
        (replace_all, "class/0.bmp has another size (and 3 more)"),
        (lambda folder: (folder / "notes.txt").write_text("no image"), ""),
        (lambda folder: touch(folder / "0.bmp"), ""),
    ],
)
def test_changes_are_named(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    before = identify(source(images(tmp_path)).inputs)
    change(tmp_path / "class")
    found = compare(before, source(tmp_path).inputs)
    assert str(found) == said
    assert bool(found.changes) == bool(said)
    assert (identify(source(tmp_path).inputs).digest == before.digest) == (not said)


def test_a_moved_folder_is_the_same_with_the_times_of_now(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")).inputs)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    for path in (tmp_path / "b" / "class").iterdir():
        touch(path)
    found = compare(before, source(tmp_path / "b").inputs)
    assert found.changes == ()
    assert found.identity == identify(source(tmp_path / "b").inputs) != before
    assert found.identity.digest == before.digest


def test_another_folder_with_the_same_sizes_and_times_is_another_data_set(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")).inputs)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "b" / "class" / "2.bmp"
    at = other.stat().st_mtime_ns
    picture(other, 77)
    os.utime(other, ns=(at, at))
    assert compare(before, source(tmp_path / "b").inputs).changes == ("class/2.bmp has another content",)
    # In place, equal size and time count as the same: this is what makes a start cheap.
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert compare(before, source(tmp_path / "a").inputs).changes == ()


def test_of_large_files_size_and_time_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CHECKSUM_MB", 1e-3)
    before = identify(source(images(tmp_path / "a")).inputs)
    assert {file.sha256 for file in before.files} == {None}
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with their times
    monkeypatch.undo()
    with_checksums = identify(source(tmp_path / "a").inputs)
    touch(tmp_path / "a" / "class" / "0.bmp")
    for found, folder, checksum_mb, changed in (
        (before, "b", 1, False),
        (before, "a", 1, True),
        (with_checksums, "a", 1, False),
        (with_checksums, "a", 0, True),  # too dear to make the checksum again
        (with_checksums, "b", 0, False),
    ):
        monkeypatch.setattr(identity, "CHECKSUM_MB", checksum_mb)
        told = str(compare(found, source(tmp_path / folder).inputs))
        assert told.startswith("class/0.bmp has another time") if changed else told == ""


def test_the_record_comes_back(tmp_path: Path) -> None:
    made = identify(source(images(tmp_path / "in")).inputs)
    path = str(tmp_path / "inputs.parquet")
    identity.save(made, LOCAL, path)
    assert identity.load(LOCAL, path) == made
    mixed = Identity((InputFile("a", 1), InputFile("b", 2, 3), InputFile("c", 4, None, "e")), "here")
    identity.save(mixed, LOCAL, path)
    assert identity.load(LOCAL, path) == mixed
    Path(path).write_bytes(Path(path).read_bytes()[:20])
    with pytest.raises(UserError, match=r"inputs\.parquet is unreadable"):
        identity.load(LOCAL, path)


def test_the_digest_is_of_path_size_and_checksum_or_time() -> None:
    files = (InputFile("a", 1, 5, "x"), InputFile("b", 2, 6, None))
    digest = Identity(files, "here").digest
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


# What a source counts as its files; known sets: test_known_sources.py


def paths(data: DataConfig) -> list[str]:
    found = identify(open_source(data, 0).inputs)
    assert all(file.sha256 and file.size for file in found.files)
    return [file.path for file in found.files]


@pytest.mark.parametrize(("source_name", "kind"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_the_shards_of_a_folder_or_a_file(tmp_path: Path, source_name: Any, kind: str) -> None:
    every = [f"{split}/{number}.{kind}" for split in ("test", "train") for number in range(2)]
    for name in every:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if kind == "tar":
            write_tar(tmp_path / name, [("a.png", b"no image, which nobody asks here")])
        else:
            pq.write_table(pa.table({"id": ["a"], "image": [b"none"]}), tmp_path / name)
    (tmp_path / "rejects.jsonl").write_text("")

    def at(path: str) -> DataConfig:
        return DataConfig(source=source_name, path=path, image_size=8, channels=1)

    assert paths(at(str(tmp_path))) == paths(at(tmp_path.as_uri())) == every
    assert paths(at(f"{tmp_path}/train/1.{kind}")) == [f"1.{kind}"]
    if kind == "tar":
        pattern = f"{tmp_path}/{{train,test}}/{{0..1}}.tar"
        assert paths(at(pattern)) == every
        before = identify(open_source(at(str(tmp_path)), 0).inputs)
        assert compare(before, open_source(at(pattern), 0).inputs).changes == ()


def test_the_digits_are_arrays() -> None:
    (arrays,) = identify(open_source(DataConfig(), 0).inputs).files
    raw = load_digits()
    assert arrays.size == raw.images.size + raw.target.size
    assert compare(Identity((arrays,)), open_source(DataConfig(), 5).inputs).changes == ()
    other = Identity((InputFile(arrays.path, arrays.size, None, "another"),))
    (told,) = compare(other, open_source(DataConfig(), 0).inputs).changes
    assert told == "load_digits has another content"
