"""The mutants stay in step with the code: each names one place, and another text for it."""

import ast
from pathlib import Path

from tests.mutants.__main__ import MUTANTS, ROOT, Mutant, place, run


def test_a_mutant_changes_one_place_and_is_python() -> None:
    for mutant in MUTANTS:
        whole = place(mutant).read_text()
        changed = whole.replace(mutant.before, mutant.after)
        assert changed != whole, mutant.name
        ast.parse(changed)
        assert [name for name in mutant.tests.split() if not (ROOT / name).exists()] == [], mutant.name


def test_that_a_mutant_has_changed_its_text_is_no_kill(tmp_path: Path) -> None:
    """The test above fails for any mutant, since it no longer finds the text."""
    files = {
        "npdraw_dist/add.py": "total = 1 + 1\n",
        "tests/test_add.py": "def test_nothing(): ...\n",
        "tests/mutants/test_mutants.py": "def test_fails(): assert False\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    mutant = Mutant("a sum is a difference", "1 + 1", "1 - 1", "tests/test_add.py")
    assert run(mutant, tmp_path)["killed_by"] is None
    (tmp_path / "tests/test_other.py").write_text("def test_fails(): assert False\n")
    assert run(mutant, tmp_path)["killed_by"] == "tests/test_other.py::test_fails"
