"""The rooms and their one-way imports, the sizes of files and functions, the top level."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import npdraw_dist

ROOT = Path(__file__).resolve().parents[1]
MIDDLE = {"data", "bank", "parse", "nn", "measure", "training"}
COMMAND_ROOMS = {"evaluate", "edit", "serve", "export_demo", "bench"}  # a command each; none imports another

# What each room may import beside itself: rooms, or single files where no more is needed.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "config": {
        *("core.grid", "core.grid_sizes", "core.errors", "core.model_files", "core.process"),
        "core.storage",
    },
    **{room: {"core", "config"} for room in MIDDLE},
    "pipeline": {"core", "config"} | MIDDLE,
    **{room: {"core", "config", "pipeline"} | MIDDLE for room in COMMAND_ROOMS},
    "tune_spaces": {"core", "config", "pipeline", "training", "measure.metrics"},
    "cluster": {"config"},
}
# A command that is one file.
COMMAND = {
    *("core", "config", "pipeline", "training.launch", "training.environment"),
    "training.cluster",
}
FILES: dict[str, set[str]] = {
    "__init__": {"core.images", "core.parts", "nn.hub", "nn.npdraw", "pipeline.fit"},
    "prepare": COMMAND | {"data.shards", "data.prepare"},
    "extractor": COMMAND | {"data", "measure.features", "nn.classifier", "training.feed"},
}
RAY = {
    "data",
    "bank",
    "training",
    "pipeline",
    "tune_spaces",
    "cluster",
} | COMMAND_ROOMS

PUBLIC = npdraw_dist._MODULES  # name in `npdraw_dist` -> room.file
TOP_LEVEL = {
    *("npdraw_dist", "tune_spaces", "cluster", "tests", "docs", "pyproject.toml", "README.md", "LICENSE"),
    *("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "mkdocs.yml"),
}
GENERATED = {"runs", "build", "dist", "site", "__pycache__"}

SOURCES = sorted(
    path for folder in ("npdraw_dist", "tune_spaces", "cluster") for path in (ROOT / folder).rglob("*.py")
)
ALL_FILES = SOURCES + sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_for_types(node: ast.AST) -> bool:
    """Whether a block runs in a type checker alone."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes_of(tree: ast.AST, types: bool) -> Iterator[ast.AST]:
    """All nodes, at whatever depth. types: also those that a type checker alone reads."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if types or not is_for_types(child):
            yield from nodes_of(child, types)
        elif isinstance(child, ast.If):
            for other in child.orelse:
                yield from nodes_of(other, types)


def imported(path: Path, tree: ast.AST, types: bool = True) -> Iterator[str]:
    """The dotted names of everything that a file imports, at whatever depth, also by import_module."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in nodes_of(tree, types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            for argument in node.args:
                strings = [n.value for n in ast.walk(argument) if isinstance(n, ast.Constant)]
                yield from (text for text in strings if isinstance(text, str))


def place_of(path: Path) -> tuple[str, set[str] | None]:
    """The room of a file (its name for a command), and what it may import (None: its room is unknown)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "npdraw_dist":
        return parts[0], ALLOWED.get(parts[0])
    if len(parts) == 2:
        return parts[1], FILES.get(parts[1], COMMAND)
    return parts[1], ALLOWED.get(parts[1])


def own_edge(name: str) -> str | None:
    """`room.file` of a name within this repository, `tune_spaces` for the sweeps, else None."""
    parts = name.split(".")
    if parts[0] in ("tune_spaces", "cluster", "tests"):
        return parts[0]
    if parts[0] != "npdraw_dist":
        return None
    if len(parts) > 1 and parts[1] in PUBLIC:
        return PUBLIC[parts[1]]
    return ".".join(parts[1:3])


def wrong_edges(path: Path, source: str) -> list[str]:
    room, allowed = place_of(path)
    if allowed is None:
        return [f"{name_of(path)} is in no room of the design"]
    command = len(path.relative_to(ROOT).parts) == 2 and path.parent.name == "npdraw_dist"
    wrong = []
    for name in imported(path, ast.parse(source)):
        if name.split(".")[0] == "ray" and room not in RAY and not (command and room != "__init__"):
            wrong.append(f"{name_of(path)} imports ray")
        edge = own_edge(name)
        if edge in (None, "", "__version__") or (edge.split(".")[0] == room and not command):
            continue
        if edge not in allowed and edge.split(".")[0] not in allowed:
            wrong.append(f"{name_of(path)} imports {edge}")
    return wrong


def test_imports_run_one_way() -> None:
    assert len(SOURCES) > 50
    assert [edge for path in SOURCES for edge in wrong_edges(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("npdraw_dist/core/x.py", "from npdraw_dist.config.schema import Experiment"),
        ("npdraw_dist/core/x.py", "from ..nn import prior"),
        ("npdraw_dist/config/x.py", "from npdraw_dist.core.paste import paste"),
        ("npdraw_dist/config/x.py", "from npdraw_dist.core import parts"),
        ("npdraw_dist/nn/x.py", "import npdraw_dist.parse.cost"),
        ("npdraw_dist/nn/x.py", "def f():\n    import ray.train"),
        ("npdraw_dist/measure/x.py", "from npdraw_dist import NPDraw"),
        ("npdraw_dist/measure/x.py", "from ray import data"),
        ("npdraw_dist/parse/x.py", "import importlib\nimportlib.import_module('npdraw_dist.bank.build')"),
        ("npdraw_dist/data/x.py", "from npdraw_dist import bank"),
        ("npdraw_dist/data/x.py", "from npdraw_dist.pipeline.store import Store"),
        ("npdraw_dist/pipeline/x.py", "import npdraw_dist.train"),
        ("npdraw_dist/pipeline/x.py", "from npdraw_dist.evaluate.actors import pool_of"),
        ("npdraw_dist/bench/x.py", "from npdraw_dist.serve import deploy"),
        ("npdraw_dist/serve/x.py", "from npdraw_dist.edit.pictures import Edits"),
        ("npdraw_dist/evaluate/x.py", "from npdraw_dist import train"),
        ("npdraw_dist/pipeline/x.py", "from tune_spaces import sweep"),
        ("npdraw_dist/train.py", "from npdraw_dist.nn.npdraw import NPDraw"),
        ("npdraw_dist/train.py", "from npdraw_dist.training.loop import train"),
        ("npdraw_dist/extra/x.py", "import os"),
        ("tune_spaces/x.py", "from npdraw_dist.nn.prior import Prior"),
    ],
)
def test_the_walk_sees_a_wrong_edge(file: str, source: str) -> None:
    assert len(wrong_edges(ROOT / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("npdraw_dist/nn/x.py", "from npdraw_dist.core.grid import Grid\nfrom . import prior"),
        ("npdraw_dist/config/x.py", "from npdraw_dist.core.grid import Grid"),
        ("npdraw_dist/pipeline/x.py", "import ray\nfrom npdraw_dist.training import checkpoint"),
        ("npdraw_dist/serve/x.py", "import ray\nfrom npdraw_dist.pipeline.models import load_model"),
        ("npdraw_dist/train.py", "import ray\nfrom npdraw_dist.training.launch import start_ray"),
    ],
)
def test_the_walk_passes_a_right_edge(file: str, source: str) -> None:
    assert wrong_edges(ROOT / file, source) == []


def file_of(name: str) -> str | None:
    """The file of this repository that an imported dotted name is in; None if it is in no file of it."""
    public = PUBLIC.get(name.removeprefix("npdraw_dist."))
    parts = f"npdraw_dist.{public}".split(".") if public else name.split(".")
    for length in range(len(parts), 0, -1):
        for ending in (".py", "/__init__.py"):
            if (ROOT / ("/".join(parts[:length]) + ending)).is_file():
                return "/".join(parts[:length]) + ending
    return None


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The files of each circle, with those of circles that share a file: each can reach all others."""
    reached = {start: set(files) for start, files in edges.items()}
    for middle in edges:
        for start in edges:
            if middle in reached[start]:
                reached[start] |= reached[middle]
    found = {
        tuple(sorted(other for other in edges if other in reached[start] and start in reached[other]))
        for start in edges
        if start in reached[start]
    }
    return sorted(map(list, found))


def test_no_imports_run_in_a_circle() -> None:
    edges = {
        name_of(path): {
            file
            for name in imported(path, ast.parse(path.read_text()), types=False)
            if (file := file_of(name)) is not None and file != name_of(path)
        }
        for path in SOURCES
    }
    assert "npdraw_dist/core/grid.py" in edges["npdraw_dist/core/paste.py"]
    assert circles(edges) == []


def test_the_walk_sees_a_circle() -> None:
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    import c"
    assert list(imported(ROOT / "npdraw_dist/nn/x.py", ast.parse(source), types=False)) == ["b", "c"]
    assert file_of("npdraw_dist.core.grid.Grid") == "npdraw_dist/core/grid.py"
    assert file_of("npdraw_dist.NPDraw") == "npdraw_dist/nn/npdraw.py"
    assert file_of("torch.nn") is None
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(edges) == [["b", "c"], ["e"]]


def test_no_file_is_over_400_lines() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in ALL_FILES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_no_function_is_over_60_lines() -> None:
    long = {}
    for path in ALL_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    long[f"{name_of(path)}:{node.name}"] = length
    assert long == {}


def test_the_top_level_holds_what_the_design_names() -> None:
    found = {path.name for path in ROOT.iterdir()}
    ours = {n for n in found if not n.startswith(".") and n not in GENERATED and not n.endswith(".egg-info")}
    assert ours - TOP_LEVEL == set()
    assert {"npdraw_dist", "tests", "pyproject.toml", "README.md", "LICENSE"} <= ours
