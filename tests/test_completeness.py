"""Every Python file is collected by pytest, checked by ruff and read by mypy."""

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from mypy.main import process_options

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("npdraw_dist", "tune_spaces", "cluster", "tests")

Paths = set[str]  # relative to the root, with slashes


def output(root: Path, *command: str) -> str:
    """Its standard output. Raises AssertionError if it fails."""
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python_files(root: Path) -> Paths:
    """All that git knows or would add; all in the rooms if this is no checkout."""
    if not (root / ".git").exists():
        return {str(path.relative_to(root)) for room in ROOMS for path in (root / room).rglob("*.py")}
    listed = output(root, "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.pyi")
    return {name for name in listed.splitlines() if (root / name).exists()}


def collected(root: Path) -> Paths:
    """The files of which pytest would run at least one test."""
    command = ("-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow")
    return set(re.findall(r"^(\S+?\.py)::", output(root, sys.executable, *command), re.MULTILINE))


def linted(root: Path) -> Paths:
    shown = output(root, sys.executable, "-m", "ruff", "check", "--show-files", ".")
    return {str(Path(line).relative_to(root)) for line in shown.splitlines()}


def typed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """What mypy's own reading of its settings makes it check, less the modules whose errors it would hide."""
    monkeypatch.chdir(root)
    sources, options = process_options(["--config-file", "pyproject.toml"])
    read = set()
    for source in sources:
        own = options.clone_for_module(source.module or "__main__")
        if source.path and not own.ignore_errors and own.follow_imports == "normal":
            read.add(str(Path(source.path).resolve().relative_to(root)))
    return read


def skipped_folders(names: Paths, patterns: list[str]) -> Paths:
    """The folders above `names` that match one of the patterns."""
    folders = {str(parent) for name in names for parent in Path(name).parents}
    return {f for f in folders for pattern in patterns if fnmatch(Path(f).name, pattern)}


def skipped_names(root: Path, config: pytest.Config) -> list[str]:
    """Patterns of folder names that pytest, ruff or builds pass over. Hidden folders are no question here."""
    settings = output(root, sys.executable, "-m", "ruff", "check", "--show-settings", ".")
    block = re.search(r"^file_resolver\.exclude = \[(.*?)\]", settings, re.DOTALL | re.MULTILINE)
    assert block is not None
    names = [*re.findall(r'"(.*?)"', block[1]), *config.getini("norecursedirs"), "build", "env"]
    return [name for name in names if not name.startswith(".")]


def test_every_test_file_gives_a_test() -> None:
    tests = {name for name in python_files(ROOT) if Path(name).match("test_*.py")}
    assert len(tests) > 80
    assert tests - collected(ROOT) == set()


def test_every_file_is_linted() -> None:
    assert python_files(ROOT) - linted(ROOT) == set()


def test_every_file_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_files(ROOT) - typed(ROOT, monkeypatch) == set()


def test_git_ignores_no_file_of_ours() -> None:
    on_disk = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert on_disk - python_files(ROOT) == set()


def test_no_folder_has_a_name_that_tools_skip(pytestconfig: pytest.Config) -> None:
    patterns = skipped_names(ROOT, pytestconfig)
    assert {"dist", "build", "venv"} <= set(patterns)
    assert skipped_folders(python_files(ROOT), patterns) == set()
