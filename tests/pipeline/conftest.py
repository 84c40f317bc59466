"""One fitted model for the tests of `fit` and of what starts from a model; the folder of a user."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import npdraw_dist
from npdraw_dist.config.load import merge
from tests.helpers.studio_models import TOLD, save_model
from tests.helpers.tiny_fit import SMALL, strokes

LONGER: dict[str, Any] = merge(
    SMALL, {"prior": {"images": 1600}, "vae": {"images": 1600}, "train": {"eval_every_images": 800}}
)


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the examples of README and docs: with pictures, and models `told` and `mate`."""
    save_model(tmp_path / "runs" / "told", TOLD)
    of_icons = {**TOLD, "prior": {**TOLD["prior"], "vocabulary": ("emotes", "places")}}
    save_model(tmp_path / "runs" / "mate", of_icons)
    (tmp_path / "my_pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "my_pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of the run `bars`, which `fit` made of `strokes()` with LONGER. Copy what changes."""
    storage = tmp_path_factory.mktemp("fitted")
    npdraw_dist.fit(strokes(), name="bars", storage=str(storage), **LONGER)
    return storage
