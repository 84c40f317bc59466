"""Optional dependencies: who needs which, what a missing one says, and that no two of them are one module."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from npdraw_dist.core.process import is_there, require_extra
from tests.helpers.runs import Refused

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Module -> the extra that installs it. All other modules come with `pip install -e .`
OF_EXTRAS = {
    "faiss": "gpu",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "ray.serve": "serve",
    "torchmetrics": "metrics",
    "torch_fidelity": "metrics",
    "optuna": "optuna",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0].lower().replace("_", "-")


def packages(requirements: list[str]) -> set[str]:
    """The names that they ask for, with those of the project's extras in place of `npdraw_dist[...]`."""
    found = set()
    for requirement in requirements:
        own = re.fullmatch(r"npdraw_dist\[(.+)\]", requirement)
        extras = own[1].split(",") if own else []
        found |= {name for extra in extras for name in packages(EXTRAS[extra])} or {name_of(requirement)}
    return found


def imported() -> Iterator[tuple[Path, str]]:
    """(file, module) of every import, at whatever depth."""
    for path in (file for folder in ("npdraw_dist", "tune_spaces") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                serve = node.module == "ray" and any(alias.name == "serve" for alias in node.names)
                yield path, "ray.serve" if serve else node.module


def test_every_import_is_in_the_base_or_in_its_extra() -> None:
    distributions = packages_distributions()
    base = packages(PROJECT["dependencies"])
    for path, module in imported():
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top in ("npdraw_dist", "tune_spaces"):
            continue
        extra = next((e for m, e in OF_EXTRAS.items() if module == m or module.startswith(f"{m}.")), None)
        where = base if extra is None else packages(EXTRAS[extra])
        # Of the two that have this module, an environment has either.
        own_names = {"faiss": ["faiss-cpu", "faiss-gpu"]}.get(top, distributions.get(top, [top]))
        of_module = {name.lower().replace("_", "-") for name in own_names}
        assert of_module & where, f"{path.relative_to(ROOT)} imports {module}, which nothing installs"


def test_an_install_of_any_extras_has_one_faiss() -> None:
    """faiss-cpu and faiss-gpu install the same module; extras of users can be combined."""
    both = {"faiss-cpu", "faiss-gpu"}
    assert not both & packages(PROJECT["dependencies"])
    for extra, requirements in EXTRAS.items():
        assert len(both & packages(requirements)) <= 1, extra
    users = {name: packages(EXTRAS[name]) for name in EXTRAS if name not in ("test", "dev")}
    assert {name for name, found in users.items() if "faiss-cpu" in found} == set()
    assert {name for name, found in users.items() if "faiss-gpu" in found} == {"gpu", "test-gpu"}


def test_all_and_test_bring_the_extras_of_users() -> None:
    for name in ("serve", "metrics", "track", "optuna"):
        assert packages(EXTRAS[name]) <= packages(EXTRAS["all"]) <= packages(EXTRAS["test"])


def test_a_missing_one_is_a_line_that_names_it() -> None:
    require_extra("this test", "test", "pytest")
    with pytest.raises(
        Exception, match=r"^serve needs npdraw_dist\[serve\]: pip install 'npdraw_dist\[serve\]'$"
    ):
        require_extra("serve", "serve", "pytest", "no_such_module")
    assert not is_there("no_such_module.inner")


@pytest.mark.parametrize(
    ("module", "command", "line"),
    [
        ("fastapi", "serve --model model", "serve needs npdraw_dist[serve]"),
        (
            "torchmetrics",
            "evaluate --model model --out n.json --extractor e.pt",
            "--extractor needs npdraw_dist[metrics]",
        ),
        (
            "torch_fidelity",
            "evaluate --model model --out n.json --fid-weights w",
            "--fid-weights needs npdraw_dist[metrics]",
        ),
        ("optuna", "sweep --space smoke --search optuna", "--search optuna needs npdraw_dist[optuna]"),
    ],
)
def test_a_command_says_so_before_anything_runs(
    module: str, command: str, line: str, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from npdraw_dist.evaluate.__main__ import main as evaluate
    from npdraw_dist.serve.__main__ import main as serve
    from tune_spaces.sweep import main as sweep

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    name, *words = command.split()
    said = refused({"serve": serve, "evaluate": evaluate, "sweep": sweep}[name], *words)
    extra = line.split("[")[1].rstrip("]")
    assert said == f"error: {line}: pip install 'npdraw_dist[{extra}]'\n"
