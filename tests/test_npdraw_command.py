"""`npdraw`: it finds every command, and passes on flags, mistakes and exit statuses."""

import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest
import yaml

from npdraw_dist import __version__
from npdraw_dist.__main__ import COMMANDS


def npdraw(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npdraw_dist", *words], capture_output=True, text=True, check=False
    )


def test_every_command_is_a_module_that_runs_alone() -> None:
    for module, does in COMMANDS.values():
        assert find_spec(module) is not None
        assert does
    (installed,) = entry_points(group="console_scripts", name="npdraw")
    assert installed.value == "npdraw_dist.__main__:main"


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_help_lists_all_commands(words: tuple[str, ...]) -> None:
    done = npdraw(*words)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_version() -> None:
    assert npdraw("--version").stdout == f"npdraw {__version__}\n"


def test_flags_and_help_are_those_of_the_command() -> None:
    done = npdraw("train", "--dry-run", "--bank.size", "7")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["bank"]["size"] == 7
    assert npdraw("sample", "--help").stdout.startswith("usage: npdraw sample")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tarin",), "error: unknown command 'tarin'; did you mean train? (known: train, sample,"),
        (("train", "--bank.size", "x"), "error: bank.size: "),
        (("sweep", "--space", "none"), "error: "),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: tuple[str, ...], message: str) -> None:
    done = npdraw(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
