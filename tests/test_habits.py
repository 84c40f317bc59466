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


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"] == npdraw_dist.__version__
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper"
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Zeng", "Urtasun", "Zemel", "Fidler", "Liao"),
    ]
    assert paper["year"] == "2021"
    assert "2106.13435" in paper["url"]
    for text in (paper["title"], "2106.13435"):
        assert text in (ROOT / "README.md").read_text()


def test_the_changelog_has_the_version_and_what_is_unreleased() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
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


def test_the_bug_report_asks_for_what_repeats_a_problem() -> None:
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert {"name", "about"} <= set(header)
    for word in ("What you ran", "instead", "--dry-run", "versions", "machine"):
        assert word in text, word


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        if target:
            assert (path.parent / target).exists(), link
        else:
            assert anchor in anchors, link


def test_contributing_names_paths_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tops = "|".join(sorted(path.name for path in ROOT.iterdir() if not path.name.startswith(".")))
    named = set(re.findall(rf"`((?:{tops})/?[\w./]*)`", text))
    assert len(named) > 40
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_contributing_tells_where_twelve_changes_go() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## The twelve usual changes")[1].split("\n## ")[0]
    assert [int(number) for number in re.findall(r"^(\d+)\. \*\*", section, re.M)] == list(range(1, 13))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "cluster/README.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    """The pages of docs/ are checked by `mkdocs build`."""
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link
    for link, anchor in re.findall(r"\]\(([^):]*)#([^)]+)\)", text):
        target = (ROOT / page).parent / link if link else ROOT / page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
