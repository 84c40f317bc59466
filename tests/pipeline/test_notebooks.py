"""The cells of the notebooks run, one after the other, with tiny budgets."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npdraw_dist import train
from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from tests.helpers.notebooks import cells, outputs, path_of, png_of
from tests.helpers.notebooks import run as run_cells
from tests.helpers.tiny_fit import FITTED, fit_few

LARGEST = 160_000  # bytes of a picture
PICTURES = {"first_drawing": 3, "editing": 4, "own_images": 3}  # kept in a notebook, at least


def run(name: str, shown: list[Any]) -> dict[str, Any]:
    """The names that the cells leave; `shown` gets the value of each last line that is an expression.

    Each is kept in a notebook as a picture or as text.
    """
    names: dict[str, Any] = {}
    for number, cell in enumerate(run_cells(name, names), start=1):
        kept = outputs(cell, number)
        if cell.value is not None:
            shown.append(cell.value)
            assert ("image/png" in kept[-1]["data"]) == (png_of(cell.value) is not None)
    return names


@pytest.fixture(autouse=True)
def _few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_few(24, monkeypatch)
    few = {"digits": {**FITTED, "data": {"fraction": 0.05}, "scale": {"num_workers": 0}}}

    def resolve_few(preset: str, file: Path | None, flags: dict[str, Any]) -> Experiment:
        return resolve(preset, file, merge(flags, few.get(preset, {})))

    monkeypatch.setattr(train, "resolve", resolve_few)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_first_drawing_and_its_edits() -> None:
    shown: list[Any] = []
    first = run("first_drawing", shown)
    assert first["drawn"].images.shape == (16, 1, 28, 28)
    bank, drawn, gif, (nats, shape) = shown
    assert "<img" in bank._repr_html_()
    assert "<img" in drawn._repr_html_()
    assert gif.n_frames > 10
    assert nats.shape == (16,)
    assert np.isfinite(nats.numpy()).all()
    assert shape == (16, 1, 28, 28)
    shown.clear()
    run("editing", shown)
    assert [len(item) for item in shown[:4]] == [8] * 4
    assert Path("way.gif").stat().st_size > 500


@pytest.mark.slow
def test_own_images() -> None:
    shown: list[Any] = []
    run("own_images", shown)
    preview, bank, drawn, (features, parts) = shown
    assert preview.width > 100
    assert "<img" in bank._repr_html_()
    assert drawn.images.shape == (16, 1, 28, 28)
    assert features[0] == 1
    assert parts > 0


@pytest.mark.slow
@pytest.mark.ray
def test_to_the_cluster() -> None:
    names: dict[str, Any] = {}
    printed = [cell.printed for cell in run_cells("to_the_cluster", names)]
    assert names["model"].sample(2).shape == (2, 1, 28, 28)
    assert "num_workers: '2:8'" in printed[-1]


@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_holds_what_its_cells_showed(name: str) -> None:
    """So that who opens it where nothing runs sees drawings: pictures that are small, no error, in order."""
    code = cells(name)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kept = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in kept} <= {"stream", "execute_result"}
    values = [output["data"] for output in kept if output["output_type"] == "execute_result"]
    encoded = ["".join(data["image/png"]) for data in values if "image/png" in data]
    pictures = [base64.b64decode(text) for text in encoded]
    for picture in pictures:
        assert len(picture) < LARGEST
        assert Image.open(io.BytesIO(picture)).width > 100
    assert len(pictures) >= PICTURES[name]
    assert path_of(name).stat().st_size < 400_000
