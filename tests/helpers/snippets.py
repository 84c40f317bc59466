"""python -m tests.helpers.snippets: a strict type checker reads the Python of README, docs and notebooks.

The blocks of a page are joined in their order, as a reader runs them. A page about a script shows parts
of it, so the script is read instead. NP-DRAW in eighty lines has no types, so that it stays short.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
OF_SCRIPTS = ("own-loop", "eighty-lines")  # pages that show parts of a script
SCRIPT = ROOT / "docs" / "own_loop.py"


def blocks(text: str) -> list[str]:
    """The ```python blocks of a page in Markdown, also those in a list."""
    return [dedent(body) for _, body in re.findall(r"^( *)```python\n(.*?)^\1```$", text, re.S | re.M)]


def pages() -> Iterator[tuple[str, str]]:
    """The name of each page with Python, and its code."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if page.stem not in OF_SCRIPTS and (found := blocks(page.read_text())):
            yield page.stem, "\n".join(found)
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        code = code.replace("from IPython.display import Image\n", "from PIL import Image\n")  # has no types
        yield notebook.stem, code.replace("Image(filename=", "Image.open(")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name.replace('-', '_')}.py") for name, _ in pages()]
        for file, (_, code) in zip(files, pages(), strict=True):
            file.write_text(code + "\n")
        # Silent: the modules that the snippets import are not checked here.
        how = ["--strict", "--follow-imports=silent", f"--config-file={ROOT / 'pyproject.toml'}"]
        command = [sys.executable, "-m", "mypy", *how, *map(str, files), str(SCRIPT)]
        sys.exit(subprocess.run(command, cwd=ROOT).returncode)
