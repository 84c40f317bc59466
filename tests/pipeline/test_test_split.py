"""The test split stays closed until it is asked for, and validation is a sample of its whole split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import fs

from npdraw_dist import train
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.pipeline.inputs import SplitImages, read_digest
from npdraw_dist.pipeline.models import read_spec
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.train_stage import validation_images
from tests.helpers.rows import list_parses
from tests.helpers.runs import HERE, TINY

LOCAL = fs.LocalFileSystem()
VAE = ["--model.kind", "vae", "--baseline.width", "16", "--baseline.depth", "0"]


def opened(run: Path) -> list[str]:
    found = Store(LOCAL, str(run)).openings()
    assert found is not None
    return [opening["by"] for opening in found]


def strokes(folder: Path, count: int) -> None:
    """Grey images of one bright bar each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for number in range(count):
        image = np.zeros((28, 28), np.uint8)
        row, column = rng.integers(2, 24, 2)
        image[row : row + 3, 2:26] = 250
        image[2:26, column : column + 3] = 250
        Image.fromarray(image).save(folder / f"{number:03d}.png")


@pytest.mark.timeout(300)
def test_only_the_question_for_test_numbers_reads_test_images(tmp_path: Path) -> None:
    """The test images are garbage, so a run that reads one stops."""
    data = tmp_path / "data"
    for split, count in (("train", 150), ("valid", 30)):
        strokes(data / split, count)
    (data / "test").mkdir()
    for number in range(40):
        (data / "test" / f"{number}.png").write_bytes(b"no picture")
    source = ["--data.source", "imagefolder", "--data.path", str(data), "--data.image_size", "28"]
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
    assert (config["seed"], config["valid_fraction"], config["test_fraction"]) == (0, 0.1, 0.1)
    assert config["inputs"] == read_digest(Store(LOCAL, str(run)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_test_numbers_come_to_the_validation_numbers(tmp_path: Path) -> None:
    flags = ["--storage", str(tmp_path), "--name", "run", *TINY, *HERE, *VAE]
    run = tmp_path / "run"
    train.main([*flags, "--eval.split", "valid"])
    first = json.loads((run / "metrics.json").read_text())
    assert opened(run) == []
    train.main(flags)
    both = json.loads((run / "metrics.json").read_text())
    valid = {key: value for key, value in first.items() if key.startswith("valid/")}
    assert valid.items() <= both.items()
    assert both["test/n"] == 32
    assert opened(run) == ["parse", "sample"]
    record = Store(LOCAL, str(run)).openings() or []
    assert record[0]["when"].startswith("20")
    assert record[0]["command"]
    model = str(run / "model")
    images = SplitImages(model, read_spec(model), "edit")
    assert images[0].shape == (1, 1, 28, 28)
    assert opened(run) == ["parse", "sample", "edit"]
    away = tmp_path / "away"
    (run / "model").rename(away)  # in no run: its config names the data and the splits
    alone = SplitImages(str(away), read_spec(str(away)), "edit")
    assert len(alone) == len(images)
    assert torch.equal(alone[7], images[7])


def test_validation_images_are_of_all_classes(tmp_path: Path) -> None:
    """The rows are sorted by class, as in a folder of images; the pixel is the class."""
    store = Store(LOCAL, str(tmp_path))
    classes = np.repeat(np.arange(10, dtype=np.uint8), 100)
    images = np.broadcast_to(classes[:, None, None, None], (1000, 1, 28, 28)).copy()
    content = to_parquet(Rows([f"{number:04d}" for number in range(1000)], images))
    write_bytes(LOCAL, store.path("parses", "valid", "valid-00000.parquet"), content)
    list_parses(LOCAL, store.path("parses"))
    found = validation_images(store, 128, seed=0).images[:, 0, 0, 0].tolist()
    assert len(found) == 128
    assert set(found) == set(range(10))
    assert validation_images(store, 128, seed=0).images[:, 0, 0, 0].tolist() == found
    other = validation_images(store, 128, seed=1).images[:, 0, 0, 0].tolist()
    assert other != found
