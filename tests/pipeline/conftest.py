"""The folder of a user."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.studio_models import TOLD, save_model


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the examples: it has pictures and the models `told` and `mate`."""
    save_model(tmp_path / "runs" / "told", TOLD)
    of_icons = {**TOLD, "prior": {**TOLD["prior"], "vocabulary": ("emotes", "places")}}
    save_model(tmp_path / "runs" / "mate", of_icons)
    (tmp_path / "my_pictures").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "my_pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
