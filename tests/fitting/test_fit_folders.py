"""`npdraw_dist.fit` of folders: what decides the settings, what is read, and a run that `train` resumes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import npdraw_dist
from npdraw_dist import train
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.data.rows import REJECTS
from npdraw_dist.fitting import fit, fit_images
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from tests.helpers.in_process import Stopped
from tests.helpers.tiny_fit import SMALL, strokes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """60 pictures in folders a and b, one of them cut, one in a name that is not UTF-8, and a loop."""
    root = tmp_path / "pictures"
    for number, image in enumerate(strokes(60)):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "ab"[number % 2] / f"{number:02d}.png")
    whole = (root / "a/00.png").read_bytes()
    (root / "b/01.png").write_bytes(whole[: len(whole) // 2])
    os.rename(root / "b/03.png", os.fsencode(root) + b"/b/caf\xe9.png")
    (root / "b" / "back").symlink_to(root)
    (root / "a" / "notes.txt").write_text("no picture, and no words")
    return root


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that `fit` does; empty: those of the run."""
    wanted: list[str] = []

    def start(experiment: Any, root: str, name: str, stages: list[str], shown: bool, **options: Any) -> Store:
        store = pipeline.start(experiment, root, name, wanted or stages, shown, **options)
        if wanted:
            raise Stopped
        return store

    monkeypatch.setattr(fit, "start", start)
    return wanted


def read_by(storage: Path, images: Path, **options: Any) -> dict[str, Any]:
    """What the stage `data` of `fit` has read: the manifest."""
    with pytest.raises(Stopped):
        npdraw_dist.fit(images, name="mine", storage=storage, **{**SMALL, **options})
    return Store.open(str(storage), "mine").read_json("data", MANIFEST)


def test_the_stage_reads_a_folder_of_which_a_sample_decides_the_settings(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]
) -> None:
    stages.append("data")
    monkeypatch.setattr(fit_images, "SAMPLED", 20)
    looked = fit_images.look((pictures, None), (None, None), {})
    assert looked.count == 60
    assert len(looked.pictures) + len(looked.pictures.rejects) == 20
    manifest = read_by(tmp_path, pictures)
    assert manifest["images"] == 59
    assert manifest["classes"] == ["a", "b"]
    (line,) = (tmp_path / "mine/data" / REJECTS).read_text().splitlines()
    assert json.loads(line)["id"] == "b/01.png"
    shards = Store.open(str(tmp_path), "mine").shards()
    ids = [name for files in shards.manifest.files.values() for f in files for name in shards.read(f).ids]
    assert "b/caf\\xe9.png" in ids


def test_a_folder_that_changed_is_refused_once_it_is_read(
    pictures: Path, tmp_path: Path, stages: list[str]
) -> None:
    stages.append("data")
    read_by(tmp_path / "runs", pictures)
    (pictures / "a/notes.txt").write_text("other notes")
    read_by(tmp_path / "runs", pictures)
    Image.fromarray(strokes(1)[0]).save(pictures / "a" / "new.png")
    with pytest.raises(UserError, match="differ from those that it has read; take another"):
        npdraw_dist.fit(pictures, name="mine", storage=tmp_path / "runs", **SMALL)


def test_one_picture_is_held_out_though_the_hash_takes_none(
    pictures: Path, tmp_path: Path, stages: list[str]
) -> None:
    stages.append("data")
    manifest = read_by(tmp_path / "runs", pictures, data={"valid_fraction": 1e-9})
    assert manifest["splits"] == {"train": 58, "valid": 1}


def test_folders_that_name_a_split_are_that_split(pictures: Path, tmp_path: Path, stages: list[str]) -> None:
    stages.append("data")
    (pictures / "b/back").unlink()
    (pictures / "b").rename(pictures / "valid")
    (pictures / "a").rename(pictures / "train")
    (pictures / "train/00.txt").write_text("a bar")
    manifest = read_by(tmp_path / "runs", pictures)
    assert manifest["splits"] == {"train": 30, "valid": 29}
    assert manifest["has_words"]


def test_a_folder_for_validation_is_read_as_a_whole(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str]
) -> None:
    """With the classes of the training images, also of those that the sample lacks."""
    stages.append("data")
    monkeypatch.setattr(fit_images, "SAMPLED", 2)
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "b").symlink_to(pictures / "b")
    (pictures / "b/back").unlink()
    manifest = read_by(tmp_path / "runs", pictures, valid=tmp_path / "valid")
    assert manifest["splits"] == {"train": 59, "valid": 29}
    shards = Store.open(str(tmp_path / "runs"), "mine").shards()
    (file,) = shards.manifest.files["valid"]
    assert set(shards.read(file).known_labels().tolist()) == {1}
    with pytest.raises(UserError, match="labels is a list, but images is a folder"):
        npdraw_dist.fit(pictures, labels=[0] * 60)


def test_train_resumes_a_run_of_fit_whose_images_are_read(
    pictures: Path,
    tmp_path: Path,
    stages: list[str],
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = tmp_path / "runs"
    stages.append("data")
    read_by(storage, pictures)
    for file in pictures.rglob("*.png"):
        file.unlink()
    command = ["--config", str(storage / "mine/config.yaml"), "--name", "mine", "--storage", str(storage)]
    train.main(command)
    assert npdraw_dist.load(storage / "mine").sample(2).shape == (2, 1, 12, 12)
    capsys.readouterr()
    train.main(command)
    assert "all done" in capsys.readouterr().out
    unread = Store.open(str(storage), "unread")
    unread.claim(Store.open(str(storage), "mine").config())
    command[3] = "unread"
    assert "were given to npdraw_dist.fit; call it again with them" in refused(train.main, *command)
