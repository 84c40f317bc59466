"""The mutants stay in step with the code: each names one place, and another text for it."""

import ast

from tests.mutants.__main__ import MUTANTS, ROOT, place


def test_a_mutant_changes_one_place_and_is_python() -> None:
    for mutant in MUTANTS:
        whole = place(mutant).read_text()
        changed = whole.replace(mutant.before, mutant.after)
        assert changed != whole, mutant.name
        ast.parse(changed)
        assert [name for name in mutant.tests.split() if not (ROOT / name).exists()] == [], mutant.name
