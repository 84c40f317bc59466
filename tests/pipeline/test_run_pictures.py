"""The pictures of the last stage: which data they read, which curves they show, how drawings are animated."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.storage import write_bytes
from npdraw_dist.data.parses import Parses, to_parquet, write_list
from npdraw_dist.data.rows import Rows
from npdraw_dist.measure.curves import SURROGATE, panels
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline import sample
from npdraw_dist.pipeline.sample import animate, write_neighbours, write_samples
from npdraw_dist.pipeline.store import Store
from tests.helpers.pixels import rgb
from tests.helpers.tiny_models import tiny_spec

LOCAL = fs.LocalFileSystem()


def store_of(folder: Path, files: int = 3, rows: int = 30, splits: tuple[str, ...] = ("train",)) -> Store:
    """A run folder with images of noise; what lies in other splits than `train` is no Parquet file."""
    store = Store(LOCAL, str(folder))
    rng, listed = np.random.default_rng(0), {}
    for number in range(files):
        listed[f"train/train-{number:05d}.parquet"] = rows
        images = rng.integers(0, 256, (rows, 1, 28, 28), dtype=np.uint8)
        ids = [f"{number}-{row}" for row in range(rows)]
        path = store.path("parses", "train", f"train-{number:05d}.parquet")
        write_bytes(LOCAL, path, to_parquet(Rows(ids, images)))
    write_list(LOCAL, store.path("parses"), {"train": listed})
    for split in splits:
        if split != "train":
            write_bytes(LOCAL, store.path("parses", split, f"{split}-00000.parquet"), b"not to be read")
    return store


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all Parquet files whose rows or metadata are read from now on."""
    paths: list[str] = []
    read, file = pq.read_metadata, pq.ParquetFile

    def read_metadata(path: str, **named: Any) -> Any:
        paths.append(path)
        return read(path, **named)

    def parquet_file(path: str, **named: Any) -> Any:
        paths.append(path)
        return file(path, **named)

    monkeypatch.setattr(pq, "read_metadata", read_metadata)
    monkeypatch.setattr(pq, "ParquetFile", parquet_file)
    return paths


def test_neighbours_are_of_the_training_images_alone(tmp_path: Path, opened: list[str]) -> None:
    """The other splits hold garbage: whoever reads them fails."""
    store = store_of(tmp_path, splits=("train", "valid", "test"))
    write_neighbours(Experiment(), store, torch.rand(16, 1, 28, 28))
    assert rgb(tmp_path / "neighbours.png").shape[1] > 1000
    assert {Path(path).parent.name for path in opened} == {"train"}
    assert not (tmp_path / "test_split.json").exists()


def test_neighbours_open_few_of_many_files(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SHARDS", 5)
    store = store_of(tmp_path, files=40, rows=4)
    write_neighbours(Experiment(), store, torch.rand(4, 1, 28, 28))
    assert len(set(opened)) == 5
    first, picture = sorted(set(opened)), (tmp_path / "neighbours.png").read_bytes()
    opened.clear()
    write_neighbours(Experiment(), store, torch.rand(4, 1, 28, 28))
    assert sorted(set(opened)) == first
    assert (tmp_path / "neighbours.png").read_bytes() != picture  # of other samples
    opened.clear()
    write_neighbours(Experiment(seed=1), store, torch.rand(4, 1, 28, 28))
    assert sorted(set(opened)) != first


def test_large_images_are_searched_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, limits = store_of(tmp_path), []
    read = Parses.images

    def images(self: Parses, limit: int, seed: int) -> Any:
        limits.append(limit)
        return read(self, limit, seed)

    monkeypatch.setattr(Parses, "images", images)
    for most in (256 << 20, 784 * 40, 1):
        monkeypatch.setattr(sample, "SEARCHED_BYTES", most)
        write_neighbours(Experiment(), store, torch.rand(4, 1, 28, 28))
    assert limits == [10_000, 40, 16]


def model_and_drawing(order: str, drawn: int) -> tuple[NPDraw, PartSequence]:
    """A model of 64 places, and two drawings of `drawn` parts."""
    sizes: dict[str, Any] = {"image_shape": (1, 32, 32), "patch": 4, "stride": 4, "steps": 64}
    torch.manual_seed(0)
    model = NPDraw(tiny_spec(order, **sizes)).eval()
    places = torch.arange(64).repeat(2, 1)
    return model, PartSequence(places < drawn, places, torch.zeros(2, 64, dtype=torch.int64))


@pytest.mark.parametrize(
    ("order", "drawn", "frames"),
    [("aligned", 64, 16), ("aligned", 10, 10), ("path", 38, 38), ("path", 64, 32), ("path", 5, 5)],
)
def test_an_order_sets_how_many_parts_a_frame_draws(order: str, drawn: int, frames: int) -> None:
    model, z = model_and_drawing(order, drawn)
    with Image.open(io.BytesIO(animate(model, model.trace(z)))) as gif:
        assert getattr(gif, "n_frames", 1) == frames + 2


def test_the_samples_that_are_written_are_returned(tmp_path: Path) -> None:
    model, _ = model_and_drawing("path", 3)
    images = write_samples(model, tmp_path, 3, 0, 1.0)
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], images.numpy())
    assert {path.name for path in tmp_path.iterdir()} == {"samples.png", "generation.gif", "samples.npz"}


def records(*keys: str) -> list[dict[str, float]]:
    return [{"images_seen": 100.0 * i, "step": i, **dict.fromkeys(keys, -1.0 * i)} for i in (1, 2, 3)]


def test_relaxed_values_are_named_as_such() -> None:
    """Relaxed draws until the second validation, hard ones after it."""
    vae = records("train/loss", "valid/elbo", "valid/kl_what", "valid/kl_whether", "valid/reconstruction")
    vae[0]["train/surrogate"] = vae[1]["train/surrogate"] = vae[2]["train/elbo"] = -5.0
    vae = [{**row, "valid/kl_where": 0.0} for row in vae]
    prior = records("train/loss", "train/nll", "valid/nll")
    found = panels(Experiment(), {"prior": prior, "vae": vae})
    by_title = {panel.title: panel for panel in found}
    bound = by_title["ELBO"]
    assert bound.lines == {
        SURROGATE: ([100.0, 200.0], [-5.0, -5.0]),
        "training": ([300.0], [-5.0]),
        "validation": ([100.0, 200.0, 300.0], [-1.0, -2.0, -3.0]),
    }
    assert set(by_title["prior: -log p(z) of the parses"].lines) == {"training", "validation"}
    assert set(by_title["parts of KL(q || p), validation"].lines) == {"kl_what", "kl_whether"}
    assert len(found) == 5
    assert all(panel.dimensions is None for panel in found)


def test_only_the_log_probabilities_of_8_bit_images_have_bits_per_dim() -> None:
    settings = {
        "data": {"source": "cifar10", "binarize": "none"},
        "grid": {"patch": 4, "stride": 4},
        "vae": {"likelihood": "logistic_mixture"},
    }
    vae = records("train/loss", "train/elbo", "valid/elbo", "valid/reconstruction", "valid/kl_z")
    found = panels(Experiment.model_validate(settings), {"vae": vae})
    dimensions = {panel.title: panel.dimensions for panel in found}
    assert dimensions["ELBO"] == dimensions["log p(x|z), validation"] == math.prod((3, 32, 32))
    assert [title for title, number in dimensions.items() if number is None] == [
        "loss, with all its weights",
        "parts of KL(q || p), validation",
    ]


def test_a_run_without_validation_has_the_curves_of_its_training() -> None:
    found = panels(Experiment(), {"prior": records("train/nll", "train/loss"), "vae": []})
    assert [(panel.title, list(panel.lines)) for panel in found] == [
        ("prior: -log p(z) of the parses", ["training"])
    ]
