"""The identity of a data set: what each source counts as its files, and which changes are noticed."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from sklearn.datasets import load_digits

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import copy, open_filesystem
from npdraw_dist.data import identity
from npdraw_dist.data.identity import Identity, InputFile, compare, identify
from npdraw_dist.data.shards import Source, open_source
from tests.helpers.idx_files import write_mnist
from tests.helpers.image_files import images, picture, touch
from tests.helpers.s3_server import s3_server
from tests.helpers.tar_files import write_tar

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
    before = identify(source(images(tmp_path)).inputs, MB)
    change(tmp_path, how)
    found = compare(before, source(tmp_path).inputs, MB)
    assert str(found) == said
    assert bool(found.changes) == bool(said)
    assert (identify(source(tmp_path).inputs, MB).digest == before.digest) == (not said)


def test_a_moved_folder_is_the_same_with_the_times_of_now(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")).inputs, MB)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    for path in (tmp_path / "b" / "class").iterdir():
        touch(path)
    found = compare(before, source(tmp_path / "b").inputs, MB)
    assert found.changes == ()
    assert found.identity == identify(source(tmp_path / "b").inputs, MB) != before
    assert found.identity.digest == before.digest


def test_another_folder_with_the_same_sizes_and_times_is_another_data_set(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")).inputs, MB)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = tmp_path / "b" / "class" / "2.bmp"
    at = other.stat().st_mtime_ns
    picture(other, 77)
    os.utime(other, ns=(at, at))
    assert compare(before, source(tmp_path / "b").inputs, MB).changes == ("class/2.bmp has another content",)
    # In place, equal size and time count as the same: this is what makes a start cheap.
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert compare(before, source(tmp_path / "a").inputs, MB).changes == ()


def test_no_file_of_equal_size_and_time_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify(source(images(tmp_path)).inputs, MB)
    read: list[str] = []
    true = identity.sha256

    def counted(filesystem: fs.FileSystem, path: str) -> str:
        read.append(path)
        return true(filesystem, path)

    monkeypatch.setattr(identity, "sha256", counted)
    assert compare(before, source(tmp_path).inputs, MB).changes == ()
    assert read == []
    change(tmp_path, "touched")
    assert compare(before, source(tmp_path).inputs, MB).changes == ()
    assert read == [str(tmp_path / "class" / "0.bmp")]


def test_of_large_files_size_and_time_decide(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path / "a")).inputs, 1e-3)
    assert {file.sha256 for file in before.files} == {None}
    assert compare(before, source(tmp_path / "a").inputs, MB).changes == ()
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with their times
    assert compare(before, source(tmp_path / "b").inputs, MB).changes == ()
    change(tmp_path / "a", "touched")
    (told,) = compare(before, source(tmp_path / "a").inputs, MB).changes
    assert told == "class/0.bmp has another time and no recorded checksum (cp -p keeps times)"


def test_a_checksum_that_is_too_dear_to_make_again(tmp_path: Path) -> None:
    before = identify(source(images(tmp_path)).inputs, MB)
    assert compare(before, source(tmp_path).inputs, 0).changes == ()
    change(tmp_path, "touched")
    told = str(compare(before, source(tmp_path).inputs, 0))
    assert told == "class/0.bmp has another time, and the files are too large to read (cp -p keeps times)"


def test_the_record_comes_back(tmp_path: Path) -> None:
    made = identify(source(images(tmp_path / "in")).inputs, MB)
    path = str(tmp_path / "inputs.parquet")
    identity.save(made, LOCAL, path)
    assert identity.load(LOCAL, path) == made
    mixed = Identity((InputFile("a", 1), InputFile("b", 2, 3), InputFile("c", 4, None, "e")), "here")
    identity.save(mixed, LOCAL, path)
    assert identity.load(LOCAL, path) == mixed


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_record_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "inputs.parquet"
    identity.save(Identity((InputFile("a", 1),)), LOCAL, str(path))
    path.write_bytes(path.read_bytes()[:20] if damage == "cut" else b"")
    with pytest.raises(UserError, match=r"inputs\.parquet is unreadable"):
        identity.load(LOCAL, str(path))


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


# What each source counts as its files


def paths(data: DataConfig) -> list[str]:
    found = identify(open_source(data, 0).inputs, MB)
    assert all(file.sha256 and file.size for file in found.files)
    return [file.path for file in found.files]


def test_the_four_files_of_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    (raw / "notes.txt").write_text("no data")
    names = [
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
    ]
    assert paths(DataConfig(source="mnist", path=str(tmp_path))) == names
    before = identify(open_source(DataConfig(source="mnist", path=str(tmp_path)), 0).inputs, MB)
    # The layout is no content.
    assert compare(before, open_source(DataConfig(source="mnist", path=str(raw)), 0).inputs, 0).changes == ()


def test_the_six_batches_of_cifar(tmp_path: Path) -> None:
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {"data": np.full((2, 3072), number, np.uint8), "labels": [0, 1]}
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    (tmp_path / "batches.meta").write_bytes(b"names")
    data = DataConfig(source="cifar10", path=str(tmp_path), binarize="none")
    assert paths(data) == [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


def test_the_list_and_the_images_of_celeba(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "celeba" / "img_align_celeba" / f"{number}.jpg", number)
    lines = "".join(f"{number}.jpg {number % 3}\n" for number in range(4))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(lines)
    data = DataConfig(source="celeba", path=str(tmp_path), binarize="none")
    listed = [f"img_align_celeba/{number}.jpg" for number in range(3)]
    assert paths(data) == [*listed, "list_eval_partition.txt"]
    before = identify(open_source(data, 0).inputs, MB)
    picture(tmp_path / "celeba" / "img_align_celeba" / "3.jpg", 3)
    assert compare(before, open_source(data, 0).inputs, MB).changes == ("img_align_celeba/3.jpg is new",)


def test_the_images_of_omniglot(tmp_path: Path) -> None:
    for part in ("images_background", "images_evaluation"):
        picture(tmp_path / part / "Greek" / "character01" / "1.png", 1)
    data = DataConfig(source="omniglot", path=str(tmp_path))
    assert paths(data) == [
        "images_background/Greek/character01/1.png",
        "images_evaluation/Greek/character01/1.png",
    ]


def write_shards(folder: Path, kind: str) -> None:
    for split in ("train", "test"):
        for number in range(2):
            path = folder / split / f"{number}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "tar":
                write_tar(path, [(f"{split}{number}.png", b"no image, which nobody asks here")])
            else:
                pq.write_table(pa.table({"id": [f"{split}{number}"], "image": [b"none"]}), path)


@pytest.mark.parametrize(("source_name", "kind"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_the_shards_of_a_folder_or_a_file(tmp_path: Path, source_name: str, kind: str) -> None:
    write_shards(tmp_path, kind)
    (tmp_path / "rejects.jsonl").write_text("")

    def at(path: str) -> DataConfig:
        return DataConfig(source=source_name, path=path, image_size=8, channels=1)

    every = [f"{split}/{number}.{kind}" for split in ("test", "train") for number in range(2)]
    assert paths(at(str(tmp_path))) == paths(at(tmp_path.as_uri())) == every
    assert paths(at(f"{tmp_path}/train/1.{kind}")) == [f"1.{kind}"]
    if kind == "tar":
        pattern = f"{tmp_path}/{{train,test}}/{{0..1}}.tar"
        assert paths(at(pattern)) == every
        before = identify(open_source(at(str(tmp_path)), 0).inputs, MB)
        assert compare(before, open_source(at(pattern), 0).inputs, 0).changes == ()


def test_the_digits_are_arrays() -> None:
    (arrays,) = identify(open_source(DataConfig(), 0).inputs, 0).files
    raw = load_digits()
    assert arrays.size == raw.images.size + raw.target.size
    assert compare(Identity((arrays,)), open_source(DataConfig(), 5).inputs, 0).changes == ()
    other = Identity((InputFile(arrays.path, arrays.size, None, "another"),))
    assert compare(other, open_source(DataConfig(), 0).inputs, 0).changes == (
        "load_digits has another content",
    )


# Object stores


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


def upload(folder: Path, uri: str) -> None:
    filesystem, root = open_filesystem(uri)
    copy(LOCAL, str(folder), filesystem, root)


def test_data_moved_to_s3_are_the_same(tmp_path: Path, bucket: str) -> None:
    before = identify(source(images(tmp_path)).inputs, MB)
    upload(tmp_path, f"{bucket}/moved")
    found = compare(before, source(f"{bucket}/moved").inputs, MB)
    assert found.changes == ()
    assert found.identity.root == f"{bucket}/moved"
    assert {file.modified for file in found.identity.files}.isdisjoint(f.modified for f in before.files)
    assert found.identity.digest == before.digest == identify(source(f"{bucket}/moved").inputs, MB).digest
    # From now on nothing is read.
    assert compare(found.identity, source(f"{bucket}/moved").inputs, 0).changes == ()


@pytest.mark.parametrize("how", ["content", "added", "deleted", "size"])
def test_other_data_on_s3_are_noticed(tmp_path: Path, bucket: str, how: str) -> None:
    before = identify(source(images(tmp_path)).inputs, MB)
    change(tmp_path, how)
    upload(tmp_path, f"{bucket}/{how}")
    said = {"content": "0.bmp has another content", "added": "9.bmp is new", "deleted": "0.bmp is missing"}
    found = compare(before, source(f"{bucket}/{how}").inputs, MB)
    assert found.changes == (f"class/{said.get(how, '0.bmp has another size')}",)
