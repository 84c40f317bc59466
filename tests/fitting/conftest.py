"""One fitted model for the tests of `fit`."""

from pathlib import Path
from typing import Any

import pytest

import npdraw_dist
from npdraw_dist.config.load import merge
from tests.helpers.tiny_fit import SMALL, strokes

LONGER: dict[str, Any] = merge(
    SMALL, {"prior": {"images": 1600}, "vae": {"images": 1600}, "train": {"eval_every_images": 800}}
)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of the run `bars`, which `fit` made of `strokes()` with LONGER. Copy what changes."""
    storage = tmp_path_factory.mktemp("fitted")
    npdraw_dist.fit(strokes(), name="bars", storage=str(storage), **LONGER)
    return storage
