"""The pictures of the last stage, and the numbers of a model in its config.json and on its card."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs

import npdraw_dist
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.data.rows import Rows
from npdraw_dist.measure.curves import SURROGATE, panels
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline import sample, trained_models
from npdraw_dist.pipeline.sample import write_neighbours, write_samples
from npdraw_dist.pipeline.store import Store
from npdraw_dist.pipeline.trained_models import publish
from npdraw_dist.system.storage import write_bytes
from tests.helpers.rows import Parsed, write_run
from tests.helpers.tiny_models import seeded, tiny_model, tiny_spec

LOCAL = fs.LocalFileSystem()


def store_of(folder: Path, files: int, rows: int) -> Store:
    """A run folder with images of noise; what lies in other splits than `train` is no Parquet file."""
    store = Store(LOCAL, str(folder))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (rows, 1, 28, 28), dtype=np.uint8) for _ in range(files)]
    train = [Rows([f"{number}-{row}" for row in range(rows)], own) for number, own in enumerate(images)]
    held_out = [Parsed(Rows(["held out"], images[0][:1]))]
    write_run(LOCAL, store.root, {"train": list(map(Parsed, train)), "valid": held_out, "test": held_out})
    for split in ("valid", "test"):
        write_bytes(LOCAL, store.path("data", split, f"{split}-00000.parquet"), b"not to be read")
    return store


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all Parquet files whose rows or metadata are read from now on."""
    paths: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def opens(path: str, **named: Any) -> Any:
            paths.append(path)
            return function(path, **named)

        return opens

    monkeypatch.setattr(pq, "read_metadata", noted(pq.read_metadata))
    monkeypatch.setattr(pq, "ParquetFile", noted(pq.ParquetFile))
    return paths


def test_neighbours_are_of_few_of_many_files_of_training_images(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files depend on the seed, not on the samples."""
    monkeypatch.setattr(sample, "SHARDS", 5)
    store, found, pictures = store_of(tmp_path, files=40, rows=4), [], []
    for seed in (0, 0, 1):
        opened.clear()
        write_neighbours(Experiment(seed=seed), store, torch.rand(4, 1, 28, 28))
        found.append(sorted(set(opened)))
        pictures.append((tmp_path / "neighbours.png").read_bytes())
        assert {Path(path).parent.name for path in opened} == {"train"}
    assert not (tmp_path / "test_split.json").exists()
    assert len(found[0]) == 5
    assert found[0] == found[1] != found[2]
    assert pictures[0] != pictures[1]


def model_and_drawing(order: str, drawn: int) -> tuple[NPDraw, PartSequence]:
    """A model of 64 places, and two drawings of `drawn` parts."""
    sizes: dict[str, Any] = {"image_shape": (1, 32, 32), "patch": 4, "stride": 4, "steps": 64}
    torch.manual_seed(0)
    model = NPDraw(tiny_spec(order, **sizes)).eval()
    places = torch.arange(64).repeat(2, 1)
    return model, PartSequence(places < drawn, places, torch.zeros(2, 64, dtype=torch.int64))


@pytest.mark.parametrize(("order", "frames"), [("aligned", 16), ("path", 32)])
def test_an_order_sets_how_many_parts_a_frame_draws(order: str, frames: int) -> None:
    model, z = model_and_drawing(order, 64)
    with Image.open(io.BytesIO(model.trace(z).gif())) as gif:
        assert getattr(gif, "n_frames", 1) == frames + 2


def test_the_samples_that_are_written_are_returned(tmp_path: Path) -> None:
    model, _ = model_and_drawing("path", 3)
    images = write_samples(model.sample_trace(3, generator=seeded(0), temperature=1.0), tmp_path)
    with np.load(tmp_path / "samples.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], images.numpy())
    assert {path.name for path in tmp_path.iterdir()} == {"samples.png", "generation.gif", "samples.npz"}


def records(*keys: str) -> list[dict[str, float]]:
    return [{"images_seen": 100.0 * i, "step": i, **dict.fromkeys(keys, -1.0 * i)} for i in (1, 2, 3)]


def test_relaxed_values_are_named_as_such() -> None:
    """Relaxed draws until the second validation, hard ones after it."""
    vae = records("train/loss", "valid/elbo", "valid/kl_what", "valid/kl_whether", "valid/reconstruction")
    vae[0]["train/surrogate"] = vae[1]["train/surrogate"] = vae[2]["train/elbo"] = -5.0
    by_title = {panel.title: panel for panel in panels(Experiment(), {"vae": vae})}
    assert by_title["ELBO"].lines == {
        SURROGATE: ([100.0, 200.0], [-5.0, -5.0]),
        "training": ([300.0], [-5.0]),
        "validation": ([100.0, 200.0, 300.0], [-1.0, -2.0, -3.0]),
    }
    assert by_title["ELBO"].dimensions is None


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
    assert sum(number is None for number in dimensions.values()) == 2  # the loss, and the KL's parts
    trained = panels(Experiment(), {"prior": records("train/nll", "train/loss"), "vae": []})
    assert [list(panel.lines) for panel in trained] == [["training"]]  # without validation


def evaluation(split: str = "test", n: int = 100, data: str = "same", **numbers: Any) -> dict[str, Any]:
    """A result of `evaluate`."""
    return {
        **{"n": n, "k": 50, "nll_iwae": 12.5, "elbo": -13.0, "bits_per_dim": 1.1271, **numbers},
        "split": split,
        "protocol": {
            **{"data_of_training": data, "parameters": 4321, "seed": 7, "ids_sha256": "abc"},
            "distance": {"n_generated": 70, "n_real": n, "features": 8, "extractor": "some-net"},
        },
        "made_by": {"version": "1.2.3", "date": "2026-11-27T06:00:00+00:00"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(tiny_spec()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_numbers_and_protocol_are_in_the_config_and_on_a_card_that_is_written_later(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    assert publish(str(folder), evaluation(frechet_distance=3.25)) == f"{folder}/config.json"
    assert "has not been measured" in (folder / "README.md").read_text()
    npdraw_dist.load(folder).save_pretrained(folder.parent / "again")
    card = (folder.parent / "again" / "README.md").read_text()
    for word in ("split `test`", "12.5000", "3.2500", "1.2.3", "2026-11-27", "some-net", "`abc`"):
        assert word in card, word
    results = npdraw_dist.load(folder).results
    assert results is not None
    assert (results["split"], results["nll_iwae"], results["n"]) == ("test", 12.5, 100)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_better_numbers_stay_and_those_of_the_test_split_replace_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(str(folder), evaluation(split="valid", n=500)) is not None
    assert publish(str(folder), evaluation(n=100)) is not None
    assert publish(str(folder), evaluation(n=100, nll_iwae=11.0)) is not None  # measured again
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert json.loads(before["config.json"])["results"]["nll_iwae"] == 11.0
    worse = (evaluation(n=99), evaluation(k=1), evaluation("valid", n=999), evaluation(data="other", n=999))
    for numbers in worse:
        assert publish(str(folder), {**numbers, "nll_iwae": 1.0}) is None
    for name in ("HF_HUB_CACHE", "ZOO"):  # a download stays as it is, and so does a model of the package
        with monkeypatch.context() as patch:
            patch.setattr(trained_models, name, folder.parent)
            assert publish(str(folder), evaluation(nll_iwae=10.0)) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
