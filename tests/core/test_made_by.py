"""Which command wrote a file: as a user can type it again."""

import subprocess
import sys
from pathlib import Path

import pytest

from npdraw_dist.core.made_by import command_line

SHOWN = "from npdraw_dist.core.made_by import command_line\nprint(command_line())\n"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (["-m", "shown"], "python -m shown --path 'my digits'"),
        (["-m", "shows"], "python -m shows --path 'my digits'"),
        (["shown.py"], "python shown.py --path 'my digits'"),
    ],
)
def test_a_command_is_told_as_it_can_be_typed_again(start: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(SHOWN)
    (tmp_path / "shows").mkdir()
    (tmp_path / "shows/__main__.py").write_text(SHOWN)
    words = [sys.executable, *start, "--path", "my digits"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == expected + "\n"


def test_a_command_of_npdraw_is_told_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["npdraw evaluate", "--model", "runs/digits/model"])
    assert command_line() == "npdraw evaluate --model runs/digits/model"
