"""How files are listed, and which changes of a data set the stamp of its source shows."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data import listing, shards
from npdraw_dist.data.listing import SCHEMA, below_root, list_paths, list_tree, local_path, stamp_of
from npdraw_dist.data.readers import arrays
from npdraw_dist.data.shards import Source, open_source
from tests.helpers.counting import Counting
from tests.helpers.image_files import images, picture, touch, write_tar

LOCAL = fs.LocalFileSystem()
STORE = fs.PyFileSystem(Counting())  # the same files, as a store lists them


def paths(table: pa.Table) -> list[str]:
    found: list[str] = table["path"].to_pylist()
    return found


def write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x" * number)


@pytest.mark.parametrize("filesystem", [LOCAL, STORE])
def test_files_below_a_folder_come_in_order_with_size_and_time(
    filesystem: fs.FileSystem, tmp_path: Path
) -> None:
    names = ["b/2.png", "a", "b/deep/1.txt", "B"]
    write(tmp_path, *names)
    (tmp_path / "empty").mkdir()
    found = list_tree(filesystem, str(tmp_path))
    assert found.schema == SCHEMA
    assert paths(found) == sorted(names)
    assert found["size"].to_pylist() == [names.index(name) for name in sorted(names)]
    if filesystem is LOCAL:
        times = [(tmp_path / name).stat().st_mtime_ns for name in sorted(names)]
        assert found["modified"].to_pylist() == times
    for no_folder in ("none", "a"):
        assert len(list_tree(filesystem, str(tmp_path / no_folder))) == 0


def test_links_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    write(tmp_path / "set", "a/1")
    write(tmp_path / "other", "2")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "set" / "file").symlink_to(tmp_path / "other" / "2")
    (tmp_path / "set" / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "other" / "back").symlink_to(tmp_path / "set", target_is_directory=True)
    assert paths(list_tree(LOCAL, str(tmp_path / "set"))) == ["a/1", "file", "linked/2"]
    (tmp_path / "start").symlink_to(tmp_path / "set", target_is_directory=True)
    assert paths(list_tree(LOCAL, str(tmp_path / "start"))) == ["a/1", "file", "linked/2"]


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"cat/\xe9\xff.png"])
def test_a_name_that_is_not_utf_8_has_its_bytes_and_is_found_again(name: bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path))
    Path(os.fsdecode(path)).write_bytes(b"content")
    (shown,) = paths(list_tree(LOCAL, str(tmp_path)))
    assert shown == name.decode(errors="backslashreplace")
    assert local_path(str(tmp_path), shown).read_bytes() == b"content"
    # A name may really be so.
    write(tmp_path / "plain", "\\xe9")
    (shown,) = paths(list_tree(LOCAL, str(tmp_path / "plain")))
    assert local_path(str(tmp_path / "plain"), shown).exists()


def test_a_long_list_is_made_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:02d}" for number in range(20)]
    write(tmp_path, *names)
    whole = list_tree(LOCAL, str(tmp_path))
    sizes: list[int] = []
    make = pa.table

    def made(columns: Any, schema: Any = None) -> pa.Table:
        sizes.append(len(columns[0]))
        return make(columns, schema)

    monkeypatch.setattr(listing, "ROWS", 8)
    monkeypatch.setattr(listing.pa, "table", made)
    assert list_tree(LOCAL, str(tmp_path)) == whole
    assert sizes == [8, 8, 4]


def test_some_files_are_looked_at_and_no_folder(tmp_path: Path) -> None:
    write(tmp_path, "a/1", "a/2", "b")
    whole = list_tree(LOCAL, str(tmp_path))
    assert list_paths(LOCAL, str(tmp_path), ["b", "a/1", "a/2"]) == whole
    assert paths(list_paths(LOCAL, str(tmp_path), ["b", "a", "none"])) == ["b"]
    assert paths(list_paths(LOCAL, "", [str(tmp_path / "b")])) == [str(tmp_path / "b")]


def test_the_folder_that_files_share() -> None:
    assert below_root(["a/b/1", "a/b/c/2"]) == ("a/b", ["1", "c/2"])
    assert below_root(["a/b/1", "a/bc/2"]) == ("a", ["b/1", "bc/2"])
    assert below_root(["a/b/1"], "a") == ("a", ["b/1"])
    for paths in (["a/1", "b/1"], ["1"], ["/a/1", "/b/1"]):
        assert below_root(paths) == ("", paths)


def test_the_stamp_is_of_each_path_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def table(*rows: tuple[str, int, int | None]) -> pa.Table:
        return pa.table([list(column) for column in zip(*rows, strict=True)], SCHEMA)

    rows = (("a", 1, 5), ("b", 2, None))
    stamp = stamp_of(table(*rows))
    assert stamp_of(table(*rows)) == stamp
    others = [(("c", 1, 5), rows[1]), (("a", 2, 5), rows[1]), (("a", 1, 6), rows[1]), rows[:1]]
    assert len({stamp, *(stamp_of(table(*other)) for other in others)}) == 5
    assert stamp_of(pa.concat_tables([table(rows[0]), table(rows[1])]).combine_chunks()) == stamp


# The stamp of a source: of the files that it reads, and of no others


def source(path: Path | str) -> Source:
    data = DataConfig(source="imagefolder", path=str(path), image_size=8, channels=1, test_fraction=0)
    return open_source(data, 0)


def swap(folder: Path) -> None:
    first, second = folder / "0.bmp", folder / "1.bmp"
    one, two = first.read_bytes(), second.read_bytes()
    for path, content in ((first, two), (second, one)):
        path.write_bytes(content)
        touch(path)


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        (swap, True),
        (lambda folder: picture(folder / "9.bmp", 9), True),
        (lambda folder: (folder / "0.bmp").unlink(), True),
        (lambda folder: (folder / "0.bmp").rename(folder / "z.bmp"), True),
        (lambda folder: (folder / "0.bmp").write_bytes(b"another"), True),
        (lambda folder: touch(folder / "0.bmp"), True),
        (lambda folder: (folder / "0.txt").write_text("words"), True),
        (lambda folder: (folder / "1.txt").write_text("others"), True),
        (lambda folder: (folder / "notes.txt").write_text("no words of a picture"), False),
        (lambda folder: picture(folder / ".thumbnails" / "0.bmp", 0), False),
        (lambda folder: (folder / "Thumbs.db").write_bytes(b"no picture"), False),
    ],
)
def test_a_change_of_an_image_folder_is_another_stamp(
    tmp_path: Path, change: Callable[[Path], object], is_other: bool
) -> None:
    (images(tmp_path) / "class" / "1.txt").write_text("words")
    before = source(tmp_path).stamp
    assert source(tmp_path).stamp == before
    change(tmp_path / "class")
    assert (source(tmp_path).stamp != before) == is_other


def test_a_folder_that_moved_with_its_times_has_the_same_stamp(tmp_path: Path) -> None:
    before = source(images(tmp_path / "a")).stamp
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with their times
    assert source(tmp_path / "b").stamp == before


@pytest.mark.parametrize(("source_name", "kind"), [("webdataset", "tar"), ("parquet", "parquet")])
def test_the_shards_of_a_folder_or_a_file(
    tmp_path: Path, source_name: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped: list[list[str]] = []

    def noted(files: pa.Table) -> str:
        stamped.append(paths(files))
        return stamp_of(files)

    monkeypatch.setattr(shards, "stamp_of", noted)
    every = [f"{split}/{number}.{kind}" for split in ("test", "train") for number in range(2)]
    for name in every:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if kind == "tar":
            write_tar(tmp_path / name, [("a.png", b"no image, which is not read here")])
        else:
            pq.write_table(pa.table({"id": ["a"], "image": [b"none"]}), tmp_path / name)
    (tmp_path / "rejects.jsonl").write_text("")

    def stamp(path: str) -> str:
        return open_source(DataConfig(source=source_name, path=path, image_size=8, channels=1), 0).stamp

    before = stamp(str(tmp_path))
    assert stamp(tmp_path.as_uri()) == before
    assert stamped == [every] * 2
    stamp(f"{tmp_path}/train/1.{kind}")
    assert stamped.pop() == [f"1.{kind}"]
    if kind == "tar":
        assert stamp(f"{tmp_path}/{{train,test}}/{{0..1}}.tar") == before
    touch(tmp_path / every[0])
    assert stamp(str(tmp_path)) != before


def test_the_stamp_of_the_digits_is_that_of_their_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_source(DataConfig(), 0).stamp
    assert open_source(DataConfig(), 5).stamp == before
    pixels, labels = arrays.load_digits()
    monkeypatch.setattr(arrays, "load_digits", lambda: (pixels, labels[::-1].copy()))
    assert open_source(DataConfig(), 0).stamp != before
