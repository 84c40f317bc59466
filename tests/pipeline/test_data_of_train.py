"""`train` looks at its data before it starts anything, wherever they are."""

import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.core.storage import copy, open_filesystem
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.inputs import read_digest, read_inputs
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import launch
from tests.helpers.image_files import SIDE, change_one, images, put_back
from tests.helpers.runs import Refused
from tests.helpers.s3_server import s3_server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path / "data", 40)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


def words(path: Path | str, storage: Path | str) -> list[str]:
    values: dict[str, object] = {
        "storage": storage,
        "name": "run",
        "data.source": "imagefolder",
        "data.path": path,
    }
    values |= {"data.image_size": SIDE, "data.channels": 1, "bank.size": 3, "grid.patch": 4, "grid.stride": 4}
    values["scale.num_workers"] = 1  # on Ray
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


class Started(Exception):
    """Ray would have started."""


@pytest.fixture
def ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise Started

    monkeypatch.setattr(launch, "start_ray", started)


@pytest.mark.usefixtures("ray_starts")
def test_train_records_and_compares_before_it_starts_ray(
    data: Path, tmp_path: Path, store: Store, refused: Refused
) -> None:
    with pytest.raises(Started):
        train.main(words(data, tmp_path))
    assert read_digest(store) is not None
    change_one(data)
    line = refused(train.main, *words(data, tmp_path))
    assert f"the data of run {tmp_path}/run changed: class/3.bmp has another content; take another" in line
    put_back(data)
    shutil.copytree(data, tmp_path / "moved")
    with pytest.raises(Started):
        train.main(words(tmp_path / "moved", tmp_path))


@pytest.mark.usefixtures("ray_starts")
def test_train_compares_the_data_of_a_finished_run(
    data: Path,
    tmp_path: Path,
    store: Store,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Started):
        train.main(words(data, tmp_path))
    monkeypatch.setattr(pipeline, "unfinished", lambda *_: [])
    train.main(words(data, tmp_path))
    assert capsys.readouterr().out.startswith("all done: ")
    change_one(data)
    assert "changed: class/3.bmp" in refused(train.main, *words(data, tmp_path))


@pytest.mark.usefixtures("ray_starts")
def test_data_and_run_on_s3(data: Path, tmp_path: Path, refused: Refused) -> None:
    with s3_server() as bucket:
        with pytest.raises(Started):
            train.main(words(data, f"{bucket}/runs"))
        before = read_digest(Store.open(f"{bucket}/runs", "run"))
        filesystem, root = open_filesystem(f"{bucket}/data")
        copy(fs.LocalFileSystem(), str(data), filesystem, root)
        shutil.rmtree(data)
        with pytest.raises(Started):
            train.main(words(f"{bucket}/data", f"{bucket}/runs"))
        found = read_inputs(Store.open(f"{bucket}/runs", "run"))
        assert found is not None
        assert (found.root, found.digest) == (f"{bucket}/data", before)
        filesystem.delete_file(f"{root}/class/5.bmp")
        line = refused(train.main, *words(f"{bucket}/data", f"{bucket}/runs"))
        assert f"the data of run {bucket}/runs/run changed: class/5.bmp is missing" in line
