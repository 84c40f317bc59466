"""python -m tests.helpers.notebooks first_drawing editing ... [--folder FOLDER]

Runs notebooks of the docs in FOLDER or a new one, and writes into them what they show, as Jupyter does.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
LONGEST = 300  # characters of a value as text


class Shown(NamedTuple):
    """What a cell printed, and the value of its last line if that is an expression."""

    printed: str
    value: Any = None


def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A notebook, and its cells with code."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return notebook, [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(name: str, names: dict[str, Any]) -> Iterator[Shown]:
    """Runs the cells in the working folder; `names` gets what they define."""
    for cell in read(name)[1]:
        # IPython is no dependency.
        text = "".join(cell["source"]).replace("from IPython.display import Image\n", "")
        tree = ast.parse(text.replace("Image(filename=", "AnimatedImage("))
        names["AnimatedImage"] = Image.open
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, name, "exec"), names)
            value = None if last is None else eval(ast.unparse(last), names)
        yield Shown(printed.getvalue(), value)


def outputs(shown: Shown, count: int) -> list[dict[str, Any]]:
    """As a notebook keeps them. count: the number of the cell, from 1."""
    found: list[dict[str, Any]] = []
    if shown.printed:
        lines = shown.printed.replace(f"{Path.cwd()}/", "").splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": lines})
    if shown.value is not None:
        picture, text = png_of(shown.value), repr(shown.value)
        long = picture is not None or len(text) > LONGEST
        data = {"text/plain": [f"<{type(shown.value).__name__}>" if long else text]}
        if picture is not None:
            data["image/png"] = [base64.b64encode(picture).decode()]
        value = {"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}
        found.append(value)
    return found


def png_of(value: Any) -> bytes | None:
    """A picture of a value, None if it has none. A GIF stays one: viewers play it under this name too."""
    if isinstance(value, Image.Image):
        if (file := getattr(value, "filename", "")) and str(file).endswith(".gif"):
            return Path(file).read_bytes()
        buffer = io.BytesIO()
        value.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
    made: bytes | None = value._repr_png_() if hasattr(value, "_repr_png_") else None
    return made


def execute(name: str) -> None:
    """Runs a notebook in the working folder and writes its outputs."""
    notebook, code = read(name)
    for number, (cell, shown) in enumerate(zip(code, run(name, {}), strict=True), start=1):
        cell |= {"execution_count": number, "outputs": outputs(shown, number)}
        print(f"{name}: cell {number} of {len(code)}", flush=True)
    (FOLDER / f"{name}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(chosen.folder or temporary):
        for chosen_name in chosen.names:
            execute(chosen_name)
