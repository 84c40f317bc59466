"""The mutants stay in step with the code: each names one place, and another text for it."""

import ast

import pytest

from tests.mutants.__main__ import MUTANTS, ROOT, Mutant, place


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_is_python(mutant: Mutant) -> None:
    whole = place(mutant).read_text()
    changed = whole.replace(mutant.before, mutant.after)
    assert changed != whole
    ast.parse(changed)
    assert [name for name in mutant.tests.split() if not (ROOT / name).exists()] == []
