"""The files about the project: they parse, they agree with the code, and the paths that they name exist."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import npdraw_dist

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").glob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FLOOR = PROJECT["requires-python"].removeprefix(">=")


def read(name: str) -> dict[str, Any]:
    values = yaml.load(
        (ROOT / name).read_text(), Loader=yaml.BaseLoader
    )  # scalars stay text, also the key `on`
    assert isinstance(values, dict)
    return values


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"] == npdraw_dist.__version__
    assert citation["license"] == PROJECT["license"]
    assert "2106.13435" in citation["preferred-citation"]["url"]


def test_the_changelog_has_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert PROJECT["version"] in headings


def test_the_workflow_runs_the_checks_with_the_floor_and_a_newer_python() -> None:
    workflow = read(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    (python,) = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    newest = re.findall(r"^newest=(.+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert {*newest, FLOOR} == set(python.split())
    assert workflow["on"].keys() == {"push", "pull_request"}


def test_the_hooks_run_installed_tools() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert {"ruff-check", "ruff-format", "mypy"} <= set(hooks)
    for hook in hooks.values():
        if hook["language"] == "system":
            assert shutil.which(hook["entry"].split()[0]) is not None, hook["entry"]
        else:
            assert hook["language"] == "pygrep"
            re.compile(hook["entry"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, link


def test_contributing_names_paths_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tops = "|".join(sorted(path.name for path in ROOT.iterdir() if not path.name.startswith(".")))
    named = set(re.findall(rf"`((?:{tops})/?[\w./]*)`", text))
    assert len(named) > 40
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
