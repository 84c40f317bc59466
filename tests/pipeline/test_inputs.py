"""A run reads its data once, resumes with the same data only, and leaves the test split closed."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import DataConfig, Experiment
from npdraw_dist.data import ingest
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Shard
from npdraw_dist.distributed import start as starting
from npdraw_dist.pipeline import bank, parse
from npdraw_dist.pipeline import data as stage
from npdraw_dist.pipeline import run as pipeline
from npdraw_dist.pipeline.data import RunData
from npdraw_dist.pipeline.inputs import SplitImages, find_run
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.train_stage import validation_images
from npdraw_dist.pipeline.trained_models import read_spec
from npdraw_dist.system.errors import UserError
from tests.helpers.image_files import SIDE, change_one, images, put_back
from tests.helpers.in_process import Stopped, interfering, killed, stopped
from tests.helpers.prepared import prepare
from tests.helpers.rows import Parsed, write_run
from tests.helpers.runs import IN_PROCESS, TINY, Refused
from tests.helpers.tiny_fit import strokes


def experiment(path: Path | str, **sections: Any) -> Experiment:
    data = {"source": "imagefolder", "path": str(path), "image_size": SIDE, "channels": 1, "shard_rows": 10}
    settings: dict[str, Any] = {
        "data": data,
        "grid": {"patch": 4, "stride": 4},
        "bank": {"size": 3},
        "scale": {"use_gpu": False},
    }
    return with_changes(Experiment.model_validate(settings), sections)


CHANGED = "the files of data.source imagefolder changed; "
OTHERS = r"the images of run .*run differ from those that it has read"
Capture = pytest.CaptureFixture[str]


def read(own: Experiment, store: Store) -> dict[str, Any]:
    """Reads the data as a command does, for a new or a resumed run; returns the manifest."""
    images = RunData(own)
    if not store.claim(own) and store.has("data", "manifest.json"):
        images.require_same(store)
    return stage.run(own, store, images)


def shards_of(store: Store) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(store.path("data")).rglob("*.parquet")}


def ids_of(store: Store) -> set[str]:
    return {name for path in shards_of(store) for name in pq.read_table(path)["id"].to_pylist()}


def test_a_run_reads_its_data_once_and_records_them(data: Path, store: Store, capsys: Capture) -> None:
    made = experiment(data)
    manifest = read(made, store)
    assert (manifest["images"], len(ids_of(store))) == (40, 40)
    assert manifest["digest"] == store.shards().manifest.digest
    assert store.read_json("data", "vocabulary.json")["classes"] == ["class"]
    before = shards_of(store)
    assert read(made, store) == store.read_json("data", "manifest.json")
    assert shards_of(store) == before
    assert capsys.readouterr().out.count("warning") == 0


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_keeps_its_images_if_the_files_change_or_are_gone(
    gone: bool, data: Path, store: Store, capsys: Capture
) -> None:
    made = experiment(data)
    manifest, before = read(made, store), shards_of(store)
    shutil.rmtree(data) if gone else change_one(data)
    capsys.readouterr()
    if gone:
        pipeline.check(made, store, ["bank", "parse"])
    assert read(made, store) == store.read_json("data", "manifest.json")
    printed = " ".join(capsys.readouterr().out.split())
    warning = f"warning: {CHANGED}{store.shown()} resumes with the images that it has read"
    assert (warning in printed, "warning" in printed) == (not gone, not gone)
    assert shards_of(store) == before
    assert store.read_json("data", "manifest.json")["stamp"] == manifest["stamp"]


def test_data_that_are_gone_too_early_are_missed(data: Path, store: Store) -> None:
    shutil.rmtree(data)
    with pytest.raises(UserError, match="missing or has no image"):
        pipeline.check(experiment(data), store, ["data"])


def test_data_at_another_path_have_to_be_the_same(data: Path, store: Store, tmp_path: Path) -> None:
    read(experiment(data), store)
    before = shards_of(store)
    shutil.copytree(data, tmp_path / "same")  # also the times of the files
    read(experiment(tmp_path / "same"), store)
    shutil.copytree(data, tmp_path / "other")
    change_one(tmp_path / "other")
    with pytest.raises(UserError, match=OTHERS):
        read(experiment(tmp_path / "other"), store)
    with pytest.raises(UserError, match="missing or has no image"):
        read(experiment(tmp_path / "nowhere"), store)
    assert shards_of(store) == before
    with pytest.raises(
        UserError, match=r"another config \(data\.fraction: 1\.0 -> 0\.5\)"
    ):  # is looked at first
        read(experiment(tmp_path / "other", data={"fraction": 0.5}), store)


def prepared(out: Path, source: DataConfig) -> str:
    """A canonical set."""
    prepare(source, 0, str(out), "parquet")
    return str(out)


def test_a_canonical_set_is_named_and_may_move(data: Path, store: Store, tmp_path: Path) -> None:
    root = prepared(tmp_path / "set", experiment(data).data)
    manifest = read(experiment(root, data={"source": "parquet"}), store)
    assert manifest["root"] == root
    assert shards_of(store) == {}
    assert store.shards().root == root
    shutil.move(root, tmp_path / "moved")
    with pytest.raises(UserError, match=rf"the images of run {store.shown()} are not in {root}"):
        store.shards()
    assert read(experiment(tmp_path / "moved", data={"source": "parquet"}), store)["images"] == 40
    assert store.read_json("data", "manifest.json") == {**manifest, "root": str(tmp_path / "moved")} | {
        name: store.read_json("data", "manifest.json")[name] for name in ("version", "format")
    }
    assert sum(len(rows) for rows in store.shards().manifest.files.values()) > 0
    assert len(store.parses("train")) == manifest["splits"]["train"]
    images(tmp_path / "more", 41)
    other = prepared(tmp_path / "another", experiment(tmp_path / "more").data)
    with pytest.raises(UserError, match=OTHERS):
        read(experiment(other, data={"source": "parquet"}), store)


def test_the_test_split_of_a_canonical_set_is_opened_when_it_is_requested(
    data: Path, store: Store, tmp_path: Path
) -> None:
    """Also if the set is a run's own images, which may have no test images."""
    root = prepared(tmp_path / "set", experiment(data).data)
    own = experiment(root, data={"source": "parquet"}, eval={"split": "valid"})
    assert set(read(own, store)["splits"]) == {"train", "valid"}
    assert store.openings() == []
    both = with_changes(own, {"eval": {"split": "test"}})
    assert set(read(both, store)["splits"]) == {"train", "valid", "test"}
    assert [opening["by"] for opening in store.openings() or []] == ["data"]

    some, later = Store.open(str(tmp_path), "some"), Store.open(str(tmp_path), "later")
    read(experiment(data, eval={"split": "valid"}), some)
    without = experiment(some.path("data"), data={"source": "parquet"})
    assert read(without, later)["splits"]["test"] == 0
    with pytest.raises(UserError, match="has no test image for the final numbers"):
        pipeline.require_images(without, pipeline.read_counts(later), ["sample"])
    bank.run(without, later)
    assert parse.run(without, later)["splits"]["test"] == 0
    assert read(without, later)["images"] == later.read_json("parses", "manifest.json")["images"]


def test_data_that_change_before_all_are_read_are_read_anew(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment(data)
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "map_items", interfering(killed, 2))
        with pytest.raises(KeyboardInterrupt):
            read(made, store)
    begun = {path: path.stat().st_mtime_ns for path in shards_of(store)}
    assert len(begun) == 2
    with monkeypatch.context() as patch:  # the same files: what is written stays
        patch.setattr(ingest, "map_items", interfering(killed, 1))
        with pytest.raises(KeyboardInterrupt):
            read(made, store)
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    change_one(data)
    manifest = read(made, store)
    assert all(path.stat().st_mtime_ns != at for path, at in begun.items())
    assert len(ids_of(store)) == manifest["images"] == 40
    fresh = Store.open(str(data.parent), "fresh")
    assert read(made, fresh)["digest"] == manifest["digest"]
    put_back(data)


def test_a_later_split_is_read_from_the_same_files(data: Path, store: Store) -> None:
    fewer = experiment(data, eval={"split": "valid"})
    first = read(fewer, store)
    assert set(first["splits"]) == {"train", "valid"}
    assert store.openings() == []
    change_one(data)
    with pytest.raises(UserError, match=OTHERS):
        read(experiment(data), store)
    assert store.read_json("data", "manifest.json")["splits"] == first["splits"]


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_shard_that_is_damaged_is_named(data: Path, store: Store, damage: str) -> None:
    made = experiment(data)
    read(made, store)
    shard = min(shards_of(store))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{shard} is no readable shard"):
        store.shards().read(f"{shard.parent.name}/{shard.name}")


def test_the_run_of_a_model(
    data: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a link and by ".". A config.yaml of another program makes no run."""
    store.claim(experiment(data))
    for folder in (Path(store.path("model")), tmp_path / "other" / "model"):
        folder.mkdir(parents=True)
    (tmp_path / "best").symlink_to(store.path("model"))
    (tmp_path / "other" / "config.yaml").write_text("lr: 0.1")
    monkeypatch.chdir(store.path("model"))
    for model in (".", str(tmp_path / "best"), store.path("model")):
        found = find_run(model)
        assert found is not None
        assert found[0] == store.root
    assert find_run(str(tmp_path / "other" / "model")) is None


def words(path: Path | str, storage: Path | str) -> list[str]:
    values: dict[str, object] = {"storage": storage, "name": "run", "scale.num_workers": 1}  # on Ray
    values |= {"data.source": "imagefolder", "data.path": path, "data.image_size": SIDE, "data.channels": 1}
    values |= {"bank.size": 3, "grid.patch": 4, "grid.stride": 4}
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def test_train_reads_nothing_before_it_starts_ray_and_compares_before(
    data: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(starting, "start_ray", stopped)
    with pytest.raises(Stopped):
        train.main(words(data, tmp_path))
    assert not list((tmp_path / "run").rglob("*.parquet"))
    train.main([*words(data, tmp_path), *IN_PROCESS, "--stages", "data"])
    change_one(data)
    with pytest.raises(Stopped):
        train.main(words(data, tmp_path))
    assert CHANGED in " ".join(capsys.readouterr().out.split())
    shutil.copytree(data, tmp_path / "other")
    assert "differ from those that it has read" in refused(train.main, *words(tmp_path / "other", tmp_path))
    monkeypatch.setattr(pipeline, "unfinished", lambda *_: [])
    train.main(words(data, tmp_path))
    assert "differ from those that it has read" in refused(train.main, *words(tmp_path / "other", tmp_path))


VAE = ["--model.kind", "vae", "--baseline.width", "16", "--baseline.depth", "0"]


def opened(run: Path) -> list[str]:
    found = Store(fs.LocalFileSystem(), str(run)).openings()
    assert found is not None
    return [opening["by"] for opening in found]


def test_only_test_numbers_read_test_images(tmp_path: Path) -> None:
    """The test images are garbage, so a run that reads one stops."""
    data = tmp_path / "data"
    for split, count in (("train", 150), ("valid", 30)):
        (data / split).mkdir(parents=True)
        for number, image in enumerate(strokes(count)):
            Image.fromarray(image).save(data / split / f"{number:03d}.png")
    (data / "test").mkdir()
    for number in range(40):
        (data / "test" / f"{number}.png").write_bytes(b"no picture")
    source = ["--data.source", "imagefolder", "--data.path", str(data), "--data.image_size", "12"]
    flags = [*TINY, *IN_PROCESS, *VAE, *source, "--data.channels", "1", "--data.fraction", "1"]
    flags += ["--storage", str(tmp_path), "--name", "run"]
    run = tmp_path / "run"
    train.main([*flags, "--eval.split", "valid"])
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    assert metrics["valid/n"] == 30
    assert 0 < metrics["valid/nll_iwae"] <= -metrics["valid/elbo"]
    assert not [name for name in metrics if "test" in name]
    folders = sorted(path.name for path in (run / "data").iterdir() if path.is_dir())
    assert folders == [".done", "train", "valid"]
    assert opened(run) == []
    with pytest.raises(UserError, match="are bad, more than"):
        train.main(flags)
    assert opened(run) == ["data"]
    assert json.loads((run / "metrics.json").read_text()) == metrics
    config = json.loads((run / "model" / "config.json").read_text())["spec"]["data"]
    assert config["inputs"] == json.loads((run / "data" / "manifest.json").read_text())["digests"]["train"]


@pytest.mark.slow
def test_test_numbers_come_to_the_validation_numbers(
    run_in_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each opening of the test split is recorded, with the command."""
    run = Path(shutil.copytree(run_in_process, tmp_path / "tiny"))
    (run / "metrics.json").unlink()
    flags = ["--storage", str(tmp_path), "--name", "tiny", *TINY, *IN_PROCESS, "--data.fraction", "0.05"]
    train.main([*flags, "--eval.split", "valid"])
    first = json.loads((run / "metrics.json").read_text())
    assert not [name for name in first if name.startswith("test/")]
    before = opened(run)
    train.main(flags)
    both = json.loads((run / "metrics.json").read_text())
    assert {key: value for key, value in first.items() if key.startswith("valid/")}.items() <= both.items()
    assert both["test/n"] == 32
    assert opened(run) == [*before, "sample"]
    record = Store(fs.LocalFileSystem(), str(run)).openings() or []
    assert record[0]["when"].startswith("20")
    assert record[0]["command"]
    model = str(run / "model")
    images = SplitImages(model, read_spec(model), "edit")
    assert images[0].shape == (1, 1, 28, 28)
    assert opened(run) == [*before, "sample", "edit"]
    away = tmp_path / "away"
    (run / "model").rename(away)  # in no run: its config names the data and the splits
    alone = SplitImages(str(away), read_spec(str(away)), "edit")
    assert len(alone) == len(images)
    read = Mock(side_effect=Shard.read)
    monkeypatch.setattr(Shard, "read", lambda shard: read(shard))
    found, expected = (torch.cat([some[n] for n in range(len(some))]) for some in (alone, images))
    assert torch.equal(found, expected)
    assert read.call_count == 1  # not once for each image


def test_validation_images_are_of_all_classes(tmp_path: Path) -> None:
    """The rows are sorted by class, as in a folder of images; the pixel is the class."""
    store = Store(fs.LocalFileSystem(), str(tmp_path))
    classes = np.repeat(np.arange(10, dtype=np.uint8), 100)
    images = np.broadcast_to(classes[:, None, None, None], (1000, 1, 28, 28)).copy()
    rows = Rows([f"{number:04d}" for number in range(1000)], images)
    write_run(store.filesystem, store.root, {"valid": [Parsed(rows)]})
    found = validation_images(store, 128, seed=0).images[:, 0, 0, 0].tolist()
    assert len(found) == 128
    assert set(found) == set(range(10))
