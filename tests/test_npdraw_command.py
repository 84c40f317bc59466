"""`npdraw`: it finds every command, and passes on flags, mistakes and exit statuses."""

import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from npdraw_dist import __version__
from npdraw_dist.__main__ import COMMANDS
from npdraw_dist.config.cli import Command
from npdraw_dist.config.help import settings_of


def npdraw(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npdraw_dist", *words], capture_output=True, text=True, check=False
    )


def test_every_command_is_a_module_that_runs_alone() -> None:
    for entry in COMMANDS.values():
        assert find_spec(entry.module) is not None
        assert entry.does
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


@pytest.mark.few(2)
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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_imports_neither_torch_nor_ray(name: str) -> None:
    """So that it comes within a second."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['npdraw', {name!r}, '--help']\n"
        "try:\n    runpy.run_module('npdraw_dist', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "slow = {'torch', 'ray', 'pyarrow', 'scipy', 'sklearn', 'matplotlib', 'faiss', 'numpy'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines[0] == f"usage: npdraw {name} [--FLAG VALUE ...]"
    assert any(f"{line} ".startswith(f"  npdraw {name} ") for line in lines), "an example"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_class_of_the_flags_is_the_commands_own(name: str) -> None:
    command = resolve_name(COMMANDS[name].flags)
    assert issubclass(command, Command)
    known = {setting.name for setting in settings_of(command)}
    assert set(command.main_flags) <= known
    for example in command.examples:
        given = {word.lstrip("-") for word in example.split() if word.startswith("--")}
        assert given <= known


def test_completion_knows_commands_flags_and_choices(tmp_path: Path) -> None:
    done = npdraw("completion", "bash")
    assert done.returncode == 0, done.stderr
    script = tmp_path / "npdraw.bash"
    script.write_text(done.stdout)
    ask = (
        f"source {script}\n"
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        '$(complete -p npdraw | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"; }\n'
        "try npdraw tr\ntry npdraw train --prior.de\ntry npdraw train --parse.order ra\n"
        "try npdraw train --preset dig\n"
    )
    found = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == ["train", "--prior.depth", "raster ranked", "digits"]
    assert npdraw("completion", "bosh").stderr.startswith("error: completion takes the name of a shell")
