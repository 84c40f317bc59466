"""The Python of README, docs and notebooks runs, with tiny budgets."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdraw_dist import Drawings, train
from npdraw_dist.config.load import merge, resolve
from npdraw_dist.config.schema import Experiment
from npdraw_dist.fitting import fit
from tests.helpers.notebooks import run as run_cells
from tests.helpers.tiny_fit import FITTED, fit_few
from tests.pipeline.test_readme import PAGES, ROOT, blocks


@pytest.mark.slow
def test_the_python_examples_run(
    run_in_process: Path, users_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the run `digits`, as after the first command of the README."""
    shutil.copytree(run_in_process, users_folder / "runs" / "digits")
    fit_few(12, monkeypatch)
    monkeypatch.setattr(fit, "budgets", lambda *_: {})
    names: dict[str, Any] = {}
    for example in blocks("python", PAGES):
        exec(example, names)
    assert (users_folder / "cat.png").is_file()
    assert names["nats"].shape == (16,)
    assert names["few"].spec.image_shape == (1, 28, 28)


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("python", [ROOT / "docs" / "drawing.md"]):
        exec(block, names)
    assert (tmp_path / "sample.png").is_file()
    assert isinstance(names["edited"], Drawings)
    assert int(names["edited"].z.what[0, 14]) == 5
    assert names["nats"].shape == (16,)


def run(name: str) -> list[Any]:
    """The values of the last lines of cells that have one."""
    return [cell.value for cell in run_cells(name, {}) if cell.value is not None]


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_few(24, monkeypatch)
    few = {"digits": {**FITTED, "data": {"fraction": 0.05}, "scale": {"num_workers": 0}}}

    def resolve_few(preset: str, file: Path | None, flags: dict[str, Any]) -> Experiment:
        return resolve(preset, file, merge(flags, few.get(preset, {})))

    monkeypatch.setattr(train, "resolve", resolve_few)
    monkeypatch.chdir(tmp_path)
    bank, drawn, gif, (nats, shape) = run("first_drawing")
    assert "<img" in bank._repr_html_()
    assert "<img" in drawn._repr_html_()
    assert gif.n_frames > 10
    assert np.isfinite(nats.numpy()).all()
    assert shape == (16, 1, 28, 28)
    assert [len(item) for item in run("editing")[:4]] == [8] * 4
    assert Path("way.gif").stat().st_size > 500
    preview, bank, drawn, (features, parts) = run("own_images")
    assert preview.width > 100
    assert drawn.images.shape == (16, 1, 28, 28)
    assert features[0] == 1
    assert parts > 0
