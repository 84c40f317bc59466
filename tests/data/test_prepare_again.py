"""`prepare` knows its data: it goes on with the same ones, wherever they are, and refuses all others."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data import shard_writer
from npdraw_dist.data.identity import compare, identify
from npdraw_dist.data.prepare import prepare
from npdraw_dist.data.shards import DataChanged, open_source
from npdraw_dist.data.splits import SPLITS
from tests.helpers.image_files import SIDE, change_one, images, put_back
from tests.helpers.in_process import interfering, killed, map_here
from tests.helpers.rows import concat


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "map_items", map_here)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path / "data", 40)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def folder_of(path: Path) -> DataConfig:
    return DataConfig(source="imagefolder", path=str(path), image_size=SIDE, channels=1, shard_rows=10)


def prepared(path: Path, source: str = "parquet", **settings: Any) -> DataConfig:
    return DataConfig(source=source, path=str(path), image_size=SIDE, channels=1, **settings)


def kill(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: int = 2) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", interfering(killed, at))
        with pytest.raises(KeyboardInterrupt):
            prepare(folder_of(data), 0, str(out), "parquet")


def content(out: Path) -> dict[str, bytes]:
    """id -> image of all splits."""
    source = open_source(prepared(out), 0)
    rows = [concat([s.read() for s in source.shards(split)]) for split in SPLITS if source.shards(split)]
    return {name: image.tobytes() for part in rows for name, image in zip(part.ids, part.images, strict=True)}


def times(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.parquet")}


def test_the_manifest_names_the_data(data: Path, out: Path) -> None:
    manifest = prepare(folder_of(data), 0, str(out), "parquet")
    assert manifest["inputs"] == identify(open_source(folder_of(data), 0).inputs, 1).digest
    assert json.loads((out / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("finished", [False, True])
def test_moved_data_go_on(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    if finished:
        prepare(folder_of(data), 0, str(out), "parquet")
    else:
        kill(data, out, monkeypatch)
    before = times(out)
    shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(data)
    manifest = prepare(folder_of(tmp_path / "moved"), 0, str(out), "parquet")
    assert manifest["count"] == len(content(out)) == 40
    assert before
    assert {name: at for name, at in times(out).items() if name in before} == before


@pytest.mark.parametrize("finished", [False, True])
def test_changed_data_are_refused_by_name(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    if finished:
        prepare(folder_of(data), 0, str(out), "parquet")
    else:
        kill(data, out, monkeypatch)
    before = times(out)
    change_one(data)
    with pytest.raises(UserError) as error:
        prepare(folder_of(data), 0, str(out), "parquet")
    assert str(error.value) == (
        f"the data of --out {out} changed: class/3.bmp has another content; take another --out, or put the "
        "data back"
    )
    # The shards of a killed command may be of the changed data, if they changed before it was killed.
    assert times(out) == (before if finished else {})
    put_back(data)
    assert prepare(folder_of(data), 0, str(out), "parquet")["count"] == 40
    expected = {f"class/{n}.bmp" for n in range(40)}
    assert set(content(out)) == expected


def test_data_that_change_while_they_are_read(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", interfering(lambda: change_one(data), 2))
        with pytest.raises(DataChanged, match=r"while prepare read them: class/3\.bmp has another content"):
            prepare(folder_of(data), 0, str(out), "parquet")
    assert not (out / "manifest.json").exists()
    assert times(out) == {}
    # The same command takes them as they are now.
    manifest = prepare(folder_of(data), 0, str(out), "parquet")
    assert manifest["inputs"] == identify(open_source(folder_of(data), 0).inputs, 1).digest
    image = np.frombuffer(content(out)["class/3.bmp"], np.uint8)
    np.testing.assert_array_equal(image, np.random.default_rng(99).integers(0, 256, SIDE * SIDE, np.uint8))


def test_other_settings_are_another_source(data: Path, out: Path) -> None:
    prepare(folder_of(data), 0, str(out), "parquet")
    for settings, seed, form in ((folder_of(data), 1, "parquet"), (folder_of(data), 0, "webdataset")):
        with pytest.raises(UserError, match="another source or config"):
            prepare(settings, seed, str(out), form)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="another source or config"):
        prepare(DataConfig(), 0, str(out), "parquet")


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_prepared_set_knows_its_checksums(data: Path, out: Path, tmp_path: Path, form: Any) -> None:
    manifest = prepare(folder_of(data), 0, str(out), form)
    found = identify(open_source(prepared(out, form), 0).inputs, 0)
    assert {file.path: file.sha256 for file in found.files if file.path != "manifest.json"} == {
        item["file"]: item["sha256"] for item in manifest["files"]
    }
    assert all(file.sha256 for file in found.files)
    # Moved with other times and never read: the manifest says what the shards hold.
    shutil.copytree(out, tmp_path / "moved", copy_function=shutil.copyfile)
    assert compare(found, open_source(prepared(tmp_path / "moved", form), 0).inputs, 0).changes == ()
    # Where reading is cheap, a shard that is not what the manifest says is noticed.
    first = sorted((tmp_path / "moved").rglob(f"*.{'tar' if form == 'webdataset' else form}"))[0]
    with first.open("r+b") as file:
        file.seek(600)
        file.write(b"x")
    (told,) = compare(found, open_source(prepared(tmp_path / "moved", form), 0).inputs, 1).changes
    assert told == f"{first.relative_to(tmp_path / 'moved')} has another content"


def test_the_same_set_prepared_again_is_the_same_data(data: Path, out: Path, tmp_path: Path) -> None:
    prepare(folder_of(data), 0, str(out), "parquet")
    found = identify(open_source(prepared(out), 0).inputs, 1)
    data.rename(tmp_path / "moved")
    prepare(folder_of(tmp_path / "moved"), 0, str(tmp_path / "again"), "parquet")
    assert compare(found, open_source(prepared(tmp_path / "again"), 0).inputs, 1).changes == ()
    (tmp_path / "again" / "manifest.json").unlink()
    told = compare(found, open_source(prepared(tmp_path / "again"), 0).inputs, 1)
    assert str(told) == "manifest.json is missing"


def test_another_shape_than_that_of_a_prepared_set(data: Path, out: Path) -> None:
    prepare(folder_of(data), 0, str(out), "parquet")
    for size, channels in ((SIDE, 3), (SIDE - 1, 1)):
        other = DataConfig(source="parquet", path=str(out), image_size=size, channels=channels)
        with pytest.raises(UserError, match=r"prepared with images of 1 channel\(s\) and 8x8 pixels, not of"):
            open_source(other, 0)
