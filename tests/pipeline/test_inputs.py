"""A run knows its data: changed ones are refused by name, moved ones go on; the test split stays closed."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import StorageFailed, UserError
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data import shard_writer, shards
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import DataChanged, Shard
from npdraw_dist.distributed import start as ray_start
from npdraw_dist.pipeline import bank, parse, run
from npdraw_dist.pipeline.inputs import SplitImages, claim, find_run, read_digest
from npdraw_dist.pipeline.models import read_spec
from npdraw_dist.pipeline.store import Store, fingerprint_of
from npdraw_dist.pipeline.train_stage import validation_images
from tests.helpers.image_files import SIDE, change_one, put_back, touch
from tests.helpers.in_process import Stopped, interfering, killed, stopped
from tests.helpers.rows import list_parses
from tests.helpers.runs import HERE, TINY, Refused
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


def start(asked: Experiment, store: Store) -> Experiment:
    """What `train` does before the first stage."""
    claim(asked, store)
    return asked


def parsed(store: Store) -> dict[str, bytes]:
    """id -> image of all parses."""
    tables = [pq.read_table(path) for path in Path(store.path("parses")).rglob("*.parquet")]
    rows = [row for table in tables for row in zip(table["id"], table["image"].combine_chunks(), strict=True)]
    return {str(name): image.to_numpy().tobytes() for name, image in rows}


def test_a_run_records_its_data_and_compares_them_at_each_start(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(experiment(data), store)
    before = Path(store.path("inputs.parquet")).stat().st_mtime_ns
    assert start(experiment(data), store) == made
    assert Path(store.path("inputs.parquet")).stat().st_mtime_ns == before
    table = pq.read_table(store.path("inputs.parquet"))
    assert table.num_rows == 40
    assert all(table["sha256"].to_pylist())
    digest = read_digest(store)
    assert digest == table.schema.metadata[b"digest"].decode()
    for stage, manifest in (("bank", bank.run(made, store)), ("parses", parse.run(made, store))):
        assert manifest["inputs"] == digest
        assert store.read_json(stage, "manifest.json")["inputs"] == digest
    change_one(data)
    with pytest.raises(UserError, match=rf"{store.shown()} changed: class/3\.bmp has another content"):
        start(experiment(data), store)  # whatever has finished
    put_back(data)
    for path in (data / "class").iterdir():
        touch(path)
    assert start(experiment(data), store) == made
    assert read_digest(store) == digest
    monkeypatch.setattr("npdraw_dist.data.identity.sha256", None)  # the new times are recorded: no need
    assert start(experiment(data), store) == made


def test_moved_data_resume(data: Path, store: Store, tmp_path: Path) -> None:
    undisturbed = Store.open(str(tmp_path), "undisturbed")
    made = start(experiment(data), undisturbed)
    bank.run(made, undisturbed)
    parse.run(made, undisturbed)

    bank.run(start(experiment(data), store), store)
    shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(data)
    later = Store.open(str(tmp_path), "run")
    resumed = start(experiment(tmp_path / "moved"), later)
    assert fingerprint_of(resumed, "sample") == fingerprint_of(made, "sample")
    assert bank.run(resumed, later) == later.read_json("bank", "manifest.json")
    manifest = parse.run(resumed, later)
    assert manifest["inputs"] == read_digest(later) == read_digest(undisturbed)
    assert manifest["data"]["path"] == str(tmp_path / "moved")
    assert parsed(later) == parsed(undisturbed)
    assert run.unfinished(resumed, later, ["bank", "parse"]) == []
    found = find_run(later.path("model"))
    assert found is not None
    assert found[1]["data"]["path"] == str(tmp_path / "moved")


def test_the_run_of_a_model(
    data: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link and by "." too. The config.yaml of another program makes no run."""
    start(experiment(data), store)
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


def test_other_data_elsewhere_and_other_settings_are_refused(
    data: Path, store: Store, tmp_path: Path
) -> None:
    start(experiment(data), store)
    shutil.copytree(data, tmp_path / "other")
    change_one(tmp_path / "other")
    with pytest.raises(UserError, match=rf"data\.path {tmp_path}/other holds other data .*: class/3\.bmp"):
        start(experiment(tmp_path / "other"), store)
    with pytest.raises(UserError, match="missing or has no image"):
        start(experiment(tmp_path / "nowhere"), store)
    change_one(data)
    with pytest.raises(UserError, match=r"another config \(bank.size: 3 -> 4\)"):  # is looked at first
        start(experiment(data, bank={"size": 4}), store)


def test_data_that_are_gone_are_not_missed_after_the_parse(data: Path, store: Store, tmp_path: Path) -> None:
    made = start(experiment(data), store)
    bank.run(made, store)
    shutil.copytree(data, tmp_path / "kept")
    shutil.rmtree(data)
    with pytest.raises(UserError, match="missing or has no image"):
        start(experiment(data), store)
    shutil.copytree(tmp_path / "kept", data)
    parse.run(start(experiment(data), store), store)
    shutil.rmtree(data)
    assert start(experiment(data), store) == made


def test_data_that_cannot_be_seen_are_no_changed_data(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was parsed stays, and the same command goes on once the storage answers again."""
    made = start(experiment(data), store)
    bank.run(made, store)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "open_source", Mock(side_effect=UserError("cannot open s3://bucket")))
        with pytest.raises(
            StorageFailed, match=r"cannot be seen \(cannot open .*\); the same command goes on"
        ):
            parse.run(made, store)
    done = {path: path.stat().st_mtime_ns for path in Path(store.path("parses")).rglob("*.parquet")}
    assert done
    parse.run(start(experiment(data), store), store)
    assert len(parsed(store)) == 40
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_data_that_change_while_a_stage_reads_them(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = start(experiment(data), store)
    shutil.copytree(data, data.with_name("kept"))
    for stage, module in ((bank, bank), (parse, shard_writer)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "map_items", interfering(lambda: change_one(data), 1))
            with pytest.raises(DataChanged, match=r"class/3\.bmp"):
                stage.run(made, store)
        assert not store.has("bank" if stage is bank else "parses", "manifest.json")
        shutil.copytree(data.with_name("kept"), data, dirs_exist_ok=True)
        stage.run(start(made, store), store)
    assert len(parsed(store)) == 40


@pytest.mark.parametrize(("changed", "moved"), [(False, True), (True, False)])
def test_a_killed_parse_resumes_but_not_over_a_change(
    data: Path, store: Store, monkeypatch: pytest.MonkeyPatch, changed: bool, moved: bool
) -> None:
    made = start(experiment(data), store)
    bank.run(made, store)
    if moved:
        data = data.rename(data.with_name("moved"))
        made = start(experiment(data), store)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", interfering(killed, 2))
        with pytest.raises(KeyboardInterrupt):
            parse.run(made, store)
    done = sorted(Path(store.path("parses")).rglob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in done]
    assert len(done) == 2
    if changed:  # perhaps before the process was killed
        change_one(data)
        with pytest.raises(DataChanged, match=r"class/3\.bmp"):
            start(experiment(data), store)
        put_back(data)
    parse.run(start(experiment(data), store), store)
    assert len(parsed(store)) == 40
    assert ([path.stat().st_mtime_ns for path in done] == times) == (not changed)


def test_shards_of_other_data_are_not_taken(data: Path, store: Store) -> None:
    """Of a baseline, whose first stage is the parse: bad data may be mended before it has finished."""
    (data / "class" / "3.bmp").write_bytes(b"bad")
    made = start(experiment(data, model={"kind": "vae"}), store)
    with pytest.raises(UserError, match=r"1 of \d+ rows"), store.lease() as held:
        run.run_stages(made, store, ["parse"], held)
    assert not store.has("inputs.parquet")
    assert list(Path(store.path("parses")).rglob("*.parquet"))
    put_back(data)
    with store.lease() as held:
        run.run_stages(start(made, store), store, ["parse"], held)
    assert len(parsed(store)) == 40
    change_one(data)
    with pytest.raises(UserError, match=r"changed: class/3\.bmp"):
        start(made, store)


def test_a_store_without_times_is_compared_by_content(data: Path, store: Store) -> None:
    memory = fs.PyFileSystem(fs.FSSpecHandler(fsspec.core.url_to_fs("memory://identity")[0]))
    fs.copy_files(str(data), "identity", destination_filesystem=memory)
    made = start(experiment("memory://identity"), store)
    assert start(made, store) == made
    change_one(data)
    fs.copy_files(str(data), "identity", destination_filesystem=memory)
    with pytest.raises(UserError, match=r"class/3\.bmp has another content"):
        start(made, store)


def words(path: Path | str, storage: Path | str) -> list[str]:
    values: dict[str, object] = {"storage": storage, "name": "run", "scale.num_workers": 1}  # on Ray
    values |= {"data.source": "imagefolder", "data.path": path, "data.image_size": SIDE, "data.channels": 1}
    values |= {"bank.size": 3, "grid.patch": 4, "grid.stride": 4}
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def test_train_records_and_compares_before_it_starts_ray(
    data: Path, tmp_path: Path, store: Store, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_start, "start_ray", stopped)
    with pytest.raises(Stopped):
        train.main(words(data, tmp_path))
    assert read_digest(store) is not None
    change_one(data)
    assert "changed: class/3.bmp" in refused(train.main, *words(data, tmp_path))
    put_back(data)
    shutil.copytree(data, tmp_path / "moved")
    with pytest.raises(Stopped):
        train.main(words(tmp_path / "moved", tmp_path))
    monkeypatch.setattr(run, "unfinished", lambda *_: [])
    train.main(words(data, tmp_path))
    change_one(data)
    assert "changed: class/3.bmp" in refused(train.main, *words(data, tmp_path))  # also of a finished run


VAE = ["--model.kind", "vae", "--baseline.width", "16", "--baseline.depth", "0"]


def opened(run: Path) -> list[str]:
    found = Store(fs.LocalFileSystem(), str(run)).openings()
    assert found is not None
    return [opening["by"] for opening in found]


def test_only_the_question_for_test_numbers_reads_test_images(tmp_path: Path) -> None:
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
    flags = [*TINY, *HERE, *VAE, *source, "--data.channels", "1", "--data.fraction", "1"]
    flags += ["--storage", str(tmp_path), "--name", "run"]
    run = tmp_path / "run"
    train.main([*flags, "--eval.split", "valid"])
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    assert metrics["valid/n"] == 30
    assert 0 < metrics["valid/nll_iwae"] <= -metrics["valid/elbo"]
    assert not [name for name in metrics if "test" in name]
    folders = sorted(path.name for path in (run / "parses").iterdir() if path.is_dir())
    assert folders == [".done", "train", "valid"]
    assert opened(run) == []
    with pytest.raises(UserError, match="are bad, more than"):
        train.main(flags)
    assert opened(run) == ["parse"]
    assert json.loads((run / "metrics.json").read_text()) == metrics
    config = json.loads((run / "model" / "config.json").read_text())["spec"]["data"]
    assert config["inputs"] == read_digest(Store(fs.LocalFileSystem(), str(run)))


@pytest.mark.slow
def test_test_numbers_come_to_the_validation_numbers(
    run_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question for the test split is noted each time, with who asked."""
    run = Path(shutil.copytree(run_here, tmp_path / "tiny"))
    (run / "metrics.json").unlink()
    flags = ["--storage", str(tmp_path), "--name", "tiny", *TINY, *HERE, "--data.fraction", "0.05"]
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
    content = to_parquet(Rows([f"{number:04d}" for number in range(1000)], images))
    write_bytes(fs.LocalFileSystem(), store.path("parses", "valid", "valid-00000.parquet"), content)
    list_parses(fs.LocalFileSystem(), store.path("parses"))
    found = validation_images(store, 128, seed=0).images[:, 0, 0, 0].tolist()
    assert len(found) == 128
    assert set(found) == set(range(10))
