"""The cells of the notebooks of the docs, run without Jupyter."""

import ast
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


class Shown(NamedTuple):
    """What a cell printed, and the value of its last line if that is an expression."""

    printed: str
    value: Any = None


def run(name: str, names: dict[str, Any]) -> Iterator[Shown]:
    """Runs the cells in the working folder; `names` gets what they define."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        # IPython is no dependency.
        text = "".join(cell["source"]).replace("from IPython.display import Image\n", "")
        tree = ast.parse(text.replace("Image(filename=", "AnimatedImage("))
        names["AnimatedImage"] = Image.open
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, name, "exec"), names)
            value = None if last is None else eval(ast.unparse(last), names)
        yield Shown(printed.getvalue(), value)
