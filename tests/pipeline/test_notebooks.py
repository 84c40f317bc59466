"""The cells of the notebooks run, one after the other, with tiny budgets."""

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.tiny_fit import fit_few

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"


def cells(name: str) -> list[str]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(name: str, shown: list[Any]) -> dict[str, Any]:
    """The names that the cells leave; `shown` gets the value of each last line that is an expression."""
    names: dict[str, Any] = {}
    for cell in cells(name):
        tree = ast.parse(cell.replace("from IPython.display import Image\n", "from PIL import Image\n"))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if last is not None:
            text = ast.unparse(last).replace("Image(filename=", "Image.open(")  # IPython is no dependency
            shown.append(eval(text, names))
    return names


@pytest.fixture(autouse=True)
def _few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_few(24, monkeypatch)
    monkeypatch.chdir(tmp_path)


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


def test_own_images() -> None:
    shown: list[Any] = []
    run("own_images", shown)
    printed, preview, bank, drawn, (features, parts) = shown
    assert printed is None
    assert preview.width > 100
    assert "<img" in bank._repr_html_()
    assert drawn.images.shape == (16, 1, 28, 28)
    assert features[0] == 1
    assert parts > 0


@pytest.mark.slow
@pytest.mark.ray
def test_to_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("to_the_cluster", [])
    assert names["model"].sample(2).shape == (2, 1, 28, 28)
    assert "num_workers: '2:8'" in capsys.readouterr().out
