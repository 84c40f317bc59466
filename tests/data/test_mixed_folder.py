"""Every source reads people's pictures as the same images, and rejects others for the same reasons."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import Frame, read_picture
from npdraw_dist.data.parquet import images_to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import open_source
from npdraw_dist.fitting.fit_images import pictures_of
from npdraw_dist.system.errors import UserError
from tests.helpers import mixed_folder
from tests.helpers.image_files import write_tar
from tests.helpers.mixed_folder import BAD, SIDE, bad_contents, contents
from tests.helpers.rows import read_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_folder.write(tmp_path_factory.mktemp("mixed"))


def config(source: Any, path: Path) -> DataConfig:
    own: dict[str, Any] = {"valid_fraction": 0, "test_fraction": 0, "binarize": "none"}
    return DataConfig(source=source, path=str(path), image_size=SIDE, channels=3, **own)


def of_source(source: Any, path: Path) -> Rows:
    return read_all(config(source, path))["train"]


def of_folder(folder: Path, _: Path) -> Rows:
    return of_source("imagefolder", folder)


def of_tar(_: Path, tmp_path: Path) -> Rows:
    members = []
    for number, (name, content) in enumerate((contents() | bad_contents()).items()):
        members += [(f"{number}.id", name.encode()), (f"{number}.{name.rpartition('.')[2]}", content)]
    write_tar(tmp_path / "a.tar", members)
    return of_source("webdataset", tmp_path)


def of_table(_: Path, tmp_path: Path) -> Rows:
    every = contents() | bad_contents()
    table = pa.table({"id": list(every), "image": [{"bytes": content} for content in every.values()]})
    pq.write_table(table, tmp_path / "a.parquet")
    return of_source("parquet", tmp_path)


def of_fit(folder: Path, _: Path) -> Rows:
    return pictures_of(folder, SIDE)


@pytest.mark.parametrize("read", [of_folder, of_tar, of_table, of_fit])
def test_every_source_reads_all_but_what_is_no_picture(
    read: Callable[[Path, Path], Rows], folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    rows = read(folder, tmp_path)
    expected = contents()
    assert sorted(rows.ids) == sorted(expected)
    for name, image in zip(rows.ids, rows.images, strict=True):
        np.testing.assert_array_equal(image, read_picture(expected[name], Frame((3, SIDE, SIDE))), name)
    reasons = {reject.id: reject.reason for reject in rows.rejects}
    assert reasons.keys() == set(BAD)
    assert "limit of 100,000,000" in reasons["bad/bomb.png"]
    assert not any("\n" in reason for reason in reasons.values())
    if read in (of_folder, of_fit):
        folders = sorted({name.partition("/")[0] for name in (*expected, *BAD)})
        of_name = [folders.index(name.partition("/")[0]) for name in rows.ids]
        assert rows.known_labels().tolist() == of_name
    assert [warning.message for warning in recwarn if "PIL" in warning.filename] == []


def test_hidden_folders_hold_no_pictures_but_may_hold_the_folder(tmp_path: Path) -> None:
    hidden = (".thumbnails/a.png", "cat/.git/b.png", "cat/@eaDir/c.png", ".d.png")
    for name in ("cat/1.png", "dog.d/2.PNG", *hidden):
        path = tmp_path / ".mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(path)
    for read in (of_folder, of_fit):
        found = read(tmp_path / ".mine", tmp_path)
        labels = dict(zip(found.ids, found.known_labels().tolist(), strict=True))
        assert labels == {"cat/1.png": 0, "dog.d/2.PNG": 1}


@pytest.mark.parametrize("name", [b"cat/caf\xe9.png", b"caf\xe9/1.png", b"cat/\xe9/1.png"])
def test_a_name_that_is_not_utf_8_has_its_bytes(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "cat" / "2.png")
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(os.fsdecode(path)).write_bytes((tmp_path / "cat" / "2.png").read_bytes())
    shown = name.decode(errors="backslashreplace")
    words = Path(os.fsdecode(path.rpartition(b".")[0] + b".txt"))
    words.write_text("coffee")
    for read in (of_folder, of_fit):
        found = read(tmp_path, tmp_path)
        assert sorted(found.ids) == sorted(["cat/2.png", shown])
        assert len(set(found.known_labels().tolist())) == len({one.partition("/")[0] for one in found.ids})
        images_to_parquet(found, "train")
    source = open_source(config("imagefolder", tmp_path), 0)
    every = Rows.cat([shard.read() for shard in source.shards("train")])
    assert dict(zip(every.ids, every.words or [], strict=True)) == {"cat/2.png": "", shown: "coffee"}
    with pytest.raises(UserError, match="is not UTF-8"):
        of_source("parquet", tmp_path)


def test_fit_chooses_from_the_headers(folder: Path) -> None:
    """A side, and colour if one picture has some; transparent ones are judged by their pixels."""
    assert pictures_of(folder).images.shape[1:] == (3, 32, 32)
    grey, clear = folder / "LA", folder / "RGBA"
    assert pictures_of(grey).images.shape[1:] == (1, 32, 32)
    assert pictures_of(clear).images.shape[1:] == (3, 32, 32)
    padded, cropped = pictures_of(clear, 16), pictures_of(clear, 16, fit="crop", background="black")
    assert padded.images[-1][:, 0, 0].tolist() == [255, 255, 255]
    assert (padded.images[-1] != cropped.images[-1]).any()
    with pytest.raises(UserError, match=r"there are no images to fit \(bomb.png: "):
        pictures_of(folder / "bad")
    with pytest.raises(UserError, match=r"has no image \(\.png, "):
        pictures_of(str(folder / "none"))


class Dicts:
    """A set of dicts that are made on request."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, object]:
        return {self.key: Image.new("RGB", (400, 300), (index, 0, 0)), "label": index + 3}


@pytest.mark.parametrize("key", ["image", "img", "pixel_values"])
def test_items_that_are_dicts(key: str) -> None:
    found = pictures_of(Dicts(key), 16)
    assert found.images[:, 0, 8, 8].tolist() == list(range(5))
    assert found.known_labels().tolist() == [3, 4, 5, 6, 7]
    with pytest.raises(UserError, match="image 00000000 has none of image"):
        pictures_of(Dicts("picture"), 16)


def test_items_that_are_paths_or_encoded(folder: Path) -> None:
    paths: list[str | Path] = [folder / "RGB" / "same.png", str(folder / "RGB" / "wide.png")]
    paths.append(folder / "bad" / "cut.png")
    content = [{"image": {"bytes": path.read_bytes(), "path": None}} for path in map(Path, paths)]
    for items in (paths, content):
        found = pictures_of(items, SIDE)
        assert found.ids == ["00000000", "00000001"]
        assert [one.id for one in found.rejects] == ["00000002"]
        for image, path in zip(found.images, paths, strict=False):
            np.testing.assert_array_equal(image, read_picture(Path(path), Frame((3, SIDE, SIDE))))
