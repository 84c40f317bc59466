"""Draws the packages (rooms) of the code and their imports: python -m docs.rooms docs/pictures/rooms.png"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
# A room may import the rooms of lower rows, and only as an exception those of its own row.
ROWS = (
    ("commands", "fitting", "tune_spaces", "evaluate", "edit", "serve", "export_demo", "bench"),
    ("pipeline",),
    ("distributed", "training", "data", "bank", "parse", "baselines", "nn", "measure"),
    ("config", "core"),
    ("system",),
)
WIDTH, HEIGHT = 11.0, 6.4  # inches
ROUND = {"boxstyle": "round,pad=0,rounding_size=0.02"}


def room_of(path: Path) -> str | None:
    """The room of a file, `commands` for a command of one file, or None if no row of the picture has it.

    The package's `__init__.py` is in no room: it names what a user imports, and no file imports it.
    """
    parts = path.relative_to(ROOT).parts
    inner = parts[1] if len(parts) > 2 and parts[1:] != ("bank", "__main__.py") else "commands"
    room = inner if parts[0] == "npdraw_dist" else parts[0]
    return room if any(room in row for row in ROWS) and parts[1:] != ("__init__.py",) else None


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the rooms of this repository that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "tune_spaces":
                yield parts[0]
            elif parts[0] == "npdraw_dist" and len(parts) > 2:
                yield parts[1]


def read() -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Counts the lines of each room, and for each (room, other) the files in room that import other."""
    lines, edges = Counter[str](), Counter[tuple[str, str]]()
    for path in sorted([*(ROOT / "npdraw_dist").rglob("*.py"), *(ROOT / "tune_spaces").rglob("*.py")]):
        room = room_of(path)
        if room is None:
            continue
        text = path.read_text()
        lines[room] += text.count("\n")
        edges.update((room, other) for other in set(imported(ast.parse(text))) if other != room)
    return lines, edges


def draw(out: str) -> None:
    """Draws the rows, each above the rows that it may import. An import within a row has its own arrow."""
    lines, edges = read()
    figure = plt.figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    places, height = {}, 1 / len(ROWS)
    for level, row in enumerate(ROWS):
        middle = 1 - (level + 0.5) * height
        axes.add_patch(
            FancyBboxPatch((0.02, middle - 0.27 * height), 0.96, 0.54 * height, fc="0.95", ec="0.8", **ROUND)
        )
        if level:
            down = {"arrowstyle": "simple", "color": "0.75"}
            axes.annotate("", (0.5, middle + 0.31 * height), (0.5, middle + 0.69 * height), arrowprops=down)
        for number, room in enumerate(row):
            places[room] = x, y = (number + 0.5) / len(row), middle
            box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": "0.2"}
            axes.text(x, y, f"{room}\n{lines[room]:,} lines", ha="center", va="center", fontsize=9, bbox=box)
    for start, end in edges:
        if end in places and places[start][1] == places[end][1]:
            bend = -0.35 if places[start][0] < places[end][0] else 0.35
            arrow = {
                "arrowstyle": "-|>",
                "color": "C0",
                "connectionstyle": f"arc3,rad={bend}",
                "shrinkA": 20,
                "shrinkB": 20,
            }
            axes.annotate("", places[end], places[start], arrowprops=arrow)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(sys.argv[1])
