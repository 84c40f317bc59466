"""The small file that a green run of all tests leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.full_run import counts, full_run

SUITE = """
def test_a(): pass
def test_b(): pass
def test_c(): pytest.skip()
def test_d(): assert False
def test_e(broken): pass
import pytest
@pytest.fixture
def broken(): raise ValueError
@pytest.mark.xfail
def test_f(): assert False
"""


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    """Pytest's own report of SUITE, in a git repository of one commit."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    name = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=tests.xml"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
    )
    return tmp_path / "tests.xml"


def test_the_counts_are_pytests(junit: Path) -> None:
    assert counts([junit]) == {
        "passed": 2,
        "skipped": 2,
        "failed": 2,
    }  # an expected failure counts as skipped
    assert counts([junit, junit]) == {"passed": 4, "skipped": 4, "failed": 4}


def test_the_file_says_what_ran_where(junit: Path) -> None:
    run = full_run([junit], 1234, junit.parent)
    assert list(run) == ["commit", "date", "processor", "cores", "memory_gb", "python", "tests", "seconds"]
    assert json.loads(json.dumps(run)) == run
    assert len(run["commit"]) == 40
    assert run["date"].endswith("+00:00")
    assert run["processor"]
    assert min(run["cores"], run["memory_gb"]) >= 1
    assert run["python"].startswith("3.")
    assert run["seconds"] == 1234
    (junit.parent / "test_suite.py").write_text("")
    assert full_run([junit], 1, junit.parent)["commit"] == run["commit"] + "+"


def test_the_last_full_run_was_green() -> None:
    file = Path(__file__).resolve().parents[1] / ".ci" / "last-full-run.json"
    if not file.exists():
        pytest.skip("no full run yet")
    run = json.loads(file.read_text())
    assert run["tests"]["failed"] == 0
    assert run["tests"]["passed"] > 1000
