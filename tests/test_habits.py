"""The files about the project agree with the code, and their links lead somewhere."""

import re
import tomllib
from pathlib import Path

import yaml

import npdraw_dist

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version_and_the_paper() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.load((ROOT / "CITATION.cff").read_text(), Loader=yaml.BaseLoader)
    assert citation["version"] == project["version"] == npdraw_dist.__version__
    assert citation["license"] == project["license"]
    assert "2106.13435" in citation["preferred-citation"]["url"]


def test_links_lead_to_files_and_headings() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "cluster").glob("*.md")]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for name, anchor in re.findall(r"\]\((?!https?://)([^)\s#]*)#?([^)\s]*)\)", text):
            target = path.parent / name if name else path
            assert target.exists(), f"{path}: {name}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{path}: {name}#{anchor}"
