"""`evaluate` takes its numbers over into the folder of the model, unless better ones are there."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import npdraw_dist
from npdraw_dist.pipeline import models
from npdraw_dist.pipeline.models import publish
from tests.helpers.tiny_models import tiny_model, tiny_spec


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


def test_numbers_and_protocol_are_on_the_card(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    assert publish(str(folder), evaluation(frechet_distance=3.25)) == f"{folder}/README.md"
    card = (folder / "README.md").read_text()
    assert "100 images of the split `test`, 50 importance samples." in card
    assert "| `nll_iwae` | 12.5000 nats |" in card
    assert "| `frechet_distance` | 3.2500 |" in card
    told = "`npdraw evaluate` 1.2.3 on 2026-11-27, seed 7; distances of 70 samples to 100 images by the 8 "
    assert f"{told}features of some-net. SHA-256 of the ids of the images: `abc`." in card
    assert "4,321 parameters" in card
    assert "samples.png" not in card  # there is none
    results = npdraw_dist.load(folder).results
    assert results is not None
    assert (results["split"], results["nll_iwae"], results["n"]) == ("test", 12.5, 100)
    assert (folder / "model.safetensors").read_bytes() == weights
    (folder / "samples.png").touch()
    publish(f"file://{folder}", evaluation())
    assert "![samples](samples.png)" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "other",
    [
        evaluation(n=99, nll_iwae=1.0),
        evaluation(split="valid", n=999, nll_iwae=1.0),
        evaluation(data="other", n=999, nll_iwae=1.0),
        evaluation(data="unknown", n=999, nll_iwae=1.0),
    ],
)
def test_better_numbers_stay(folder: Path, other: dict[str, Any]) -> None:
    publish(str(folder), evaluation())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert publish(str(folder), other) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_numbers_of_the_test_split_replace_others(folder: Path) -> None:
    assert publish(str(folder), evaluation(split="valid", n=500)) is not None
    assert publish(str(folder), evaluation(n=20)) is not None
    assert publish(str(folder), evaluation(n=20, nll_iwae=11.0)) is not None  # measured again
    results = json.loads((folder / "config.json").read_text())["results"]
    assert (results["split"], results["n"], results["nll_iwae"]) == ("test", 20, 11.0)


def test_a_download_of_the_hub_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "HF_HUB_CACHE", str(folder.parent))
    before = (folder / "config.json").read_bytes()
    assert publish(str(folder), evaluation()) is None
    assert (folder / "config.json").read_bytes() == before
    assert str(folder.parent) != huggingface_hub.constants.HF_HUB_CACHE
