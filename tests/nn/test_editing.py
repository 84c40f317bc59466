"""Edits against a drawing kept as a plain list of (place, part), and against the canvas."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.orders import ORDERS
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.paste import render
from npdraw_dist.nn import editing
from npdraw_dist.nn.editing import mask_of
from npdraw_dist.system.errors import UserError
from tests.helpers.tiny_models import seeded

GRID = Grid(6, 7, 3, 2)  # 3 x 3 places that overlap and hang over the edge
PLACES, PARTS = GRID.places, 4
BANK = torch.rand(PARTS, 1, 3, 3, generator=seeded())

Steps = list[tuple[int, int]]  # (place, part) of what is drawn, in time


def sequence(steps: Steps, length: int, order: str) -> PartSequence:
    """(1, T) as the parser lays it out."""
    whether, where, what = [False] * length, [0] * length, [0] * length
    for step, (place, part) in enumerate(steps):
        slot = place if order == "aligned" else step
        whether[slot], where[slot], what[slot] = True, place, part
    return PartSequence(*(torch.tensor([values]) for values in (whether, where, what)))


def listed(z: PartSequence, row: int = 0) -> Steps:
    drawn = z.whether[row]
    return list(zip(z.where[row][drawn].tolist(), z.what[row][drawn].tolist(), strict=True))


def canvas(z: PartSequence) -> torch.Tensor:
    return render(BANK, z, GRID)


@st.composite
def drawings(draw: st.DrawFn, count: int = 2) -> tuple[str, int, list[Steps]]:
    """An order, T, and the steps of some drawings; in free orders a place may have two parts."""
    order = draw(st.sampled_from(list(ORDERS)))
    length = PLACES if order == "aligned" else draw(st.integers(1, PLACES))
    step = st.tuples(st.integers(0, PLACES - 1), st.integers(0, PARTS - 1))
    unique = (lambda pair: pair[0]) if order == "aligned" else None
    found = [draw(st.lists(step, max_size=length, unique_by=unique)) for _ in range(count)]
    return order, length, [sorted(steps) if order in ("aligned", "raster") else steps for steps in found]


regions = st.lists(st.booleans(), min_size=PLACES, max_size=PLACES)


def check_invariant(z: PartSequence, order: str) -> None:
    editing.checked(z, z.steps, PLACES, PARTS, where_given=order == "aligned")
    for row in range(len(z)):
        drawn = z.whether[row].tolist()
        if order == "aligned":
            assert torch.equal(z.where[row], torch.arange(PLACES))
        else:
            assert drawn == sorted(drawn, reverse=True)
        if order == "raster":
            places = [place for place, _ in listed(z, row)]
            assert places == sorted(places)


@given(drawings(), regions)
def test_compose_is_b_inside_and_a_outside(case: tuple[str, int, list[Steps]], region: list[bool]) -> None:
    order, length, (a, b) = case
    mask = torch.tensor(region)
    z = editing.compose(sequence(a, length, order), sequence(b, length, order), mask, order)
    check_invariant(z, order)
    inside = [step for step in b if region[step[0]]]
    outside = [step for step in a if not region[step[0]]][: length - len(inside)]
    assert sorted(listed(z)) == sorted(inside + outside)
    if order == "path":
        assert listed(z) == outside + inside
    assert int((z.whether & mask[z.where]).sum()) == len(inside)


@given(drawings())
def test_the_empty_region_is_a_and_the_whole_grid_is_b(case: tuple[str, int, list[Steps]]) -> None:
    order, length, (a, b) = case
    z_a, z_b = sequence(a, length, order), sequence(b, length, order)
    for whole, z in ((False, z_a), (True, z_b)):
        composed = editing.compose(z_a, z_b, torch.full((PLACES,), whole), order)
        assert torch.equal(canvas(composed), canvas(z))
        assert listed(composed) == listed(z)  # already in order


def test_ranked_drawings_merge_by_their_step() -> None:
    a, b = sequence([(0, 0), (1, 0), (2, 0)], 5, "ranked"), sequence([(3, 1), (4, 1), (5, 1)], 5, "ranked")
    mask = torch.zeros(PLACES, dtype=torch.bool)
    mask[[4, 5]] = True
    assert listed(editing.compose(a, b, mask, "ranked")) == [(0, 0), (1, 0), (4, 1), (2, 0), (5, 1)]


def test_a_full_drawing_loses_its_last_steps_and_never_the_new_ones() -> None:
    a, b = sequence([(0, 0), (1, 0), (2, 0)], 3, "ranked"), sequence([(7, 1), (8, 1)], 3, "ranked")
    mask = torch.arange(PLACES) > 6
    assert sorted(listed(editing.compose(a, b, mask, "ranked"))) == [(0, 0), (7, 1), (8, 1)]
    assert listed(editing.put(a, 8, 3, "ranked")) == [(0, 0), (1, 0), (8, 3)]


def test_a_region_for_each_row() -> None:
    z_a = PartSequence.cat([sequence([(0, 1)], PLACES, "aligned")] * 2)
    z_b = PartSequence.cat([sequence([(0, 2)], PLACES, "aligned")] * 2)
    mask = torch.zeros(2, PLACES, dtype=torch.bool)
    mask[1, 0] = True
    z = editing.compose(z_a, z_b, mask, "aligned")
    assert [listed(z, 0), listed(z, 1)] == [[(0, 1)], [(0, 2)]]


@given(drawings(1), st.integers(0, PLACES - 1), st.integers(0, PLACES - 1), st.integers(0, PARTS - 1))
def test_single_edits(case: tuple[str, int, list[Steps]], first: int, second: int, part: int) -> None:
    order, length, (steps,) = case
    z = sequence(steps, length, order)

    put = editing.put(z, first, part, order)
    others = [step for step in steps if step[0] != first]
    assert sorted(listed(put)) == sorted([*others[: length - 1], (first, part)])

    removed = editing.remove(z, torch.arange(PLACES) == first, order)
    assert sorted(listed(removed)) == sorted(others)

    there = [(second, what) for place, what in steps if place == first]
    moved = editing.move(z, first, second, order)
    expected = steps if first == second else [s for s in steps if s[0] not in (first, second)] + there
    assert sorted(listed(moved)) == sorted(expected)

    other = {first: second, second: first}
    swapped = editing.swap(z, first, second, order)
    assert sorted(listed(swapped)) == sorted((other.get(place, place), what) for place, what in steps)
    assert torch.equal(canvas(editing.swap(swapped, first, second, order)), canvas(z))
    for edited in (put, removed, moved, swapped):
        check_invariant(edited, order)


# One part twice at a place of A: kept, it would leave B no step for its last part.
@example(("raster", 3, [[(0, 0), (0, 0), (1, 0)], [(0, 0), (1, 0), (2, 0)]]))
@given(drawings())
def test_interpolation_goes_from_a_to_b_a_place_at_a_time(case: tuple[str, int, list[Steps]]) -> None:
    order, length, (a, b) = case
    z_a, z_b = sequence(a, length, order), sequence(b, length, order)
    z = editing.interpolate(z_a, z_b, PLACES, order)
    check_invariant(z, order)

    def parts_of(steps: Steps) -> list[list[int]]:
        return [sorted(what for place, what in steps if place == index) for index in range(PLACES)]

    differ = sum(x != y for x, y in zip(parts_of(a), parts_of(b), strict=True))
    assert len(z) == differ + 1
    assert torch.equal(canvas(z[:1]), canvas(z_a))
    assert torch.equal(canvas(z[-1:]), canvas(z_b))
    assert listed(z, len(z) - 1) == listed(z_b, 0)
    if order == "aligned":  # free orders may run out of steps between
        rows = [parts_of(listed(z, row)) for row in range(len(z))]
        for before, after in itertools.pairwise(rows):
            assert sum(x != y for x, y in zip(before, after, strict=True)) == 1


def test_a_stored_aligned_drawing_without_where_is_understood() -> None:
    steps = [(1, 2), (7, 3)]
    bare = sequence(steps, PLACES, "aligned").canonical()  # where is 0 where nothing is drawn
    z = editing.compose(bare, bare, torch.arange(PLACES) == 7, "aligned")
    assert listed(z) == steps


def test_mistakes_are_refused() -> None:
    z, short = sequence([(1, 2)], 5, "path"), sequence([(1, 2)], 4, "path")
    with pytest.raises(ValueError, match="5 steps"):
        editing.compose(z, short, torch.ones(PLACES, dtype=torch.bool), "path")
    with pytest.raises(ValueError, match="one drawing at each end"):
        editing.interpolate(PartSequence.cat([z, z]), z, PLACES, "path")
    for step, says in (((PLACES, 0), "where is 9"), ((-1, 0), "where is -1"), ((0, PARTS), "what is 4")):
        with pytest.raises(ValueError, match=says):
            editing.checked(sequence([step], 5, "path"), 5, PLACES, PARTS, where_given=False)
    with pytest.raises(ValueError, match="5 steps, not 4"):
        editing.checked(short, 5, PLACES, PARTS, where_given=False)
    with pytest.raises(ValueError, match="step t must draw at place t"):
        editing.checked(sequence([(3, 0)], PLACES, "path"), PLACES, PLACES, PARTS, where_given=True)


# Places as people name them.
NAMED = Grid(8, 12, 4, 4)  # 2 rows, 3 columns


@pytest.mark.parametrize(
    "places",
    [
        "0:1,1:3",
        [(0, 1), 2],
        {1, 2},
        [False, True, True, False, False, False],
        torch.tensor([0, 1, 1, 0, 0, 0], dtype=torch.bool),
        np.array([[False, True, True], [False, False, False]]),
    ],
)
def test_the_same_places_in_other_words(places: Any) -> None:
    assert mask_of(places, NAMED, 5).tolist() == [False, True, True, False, False, False]


def test_each_drawing_has_places_of_its_own_and_a_region_ends_before_its_last_numbers() -> None:
    mask = torch.rand(4, 2, 3) > 0.5
    assert torch.equal(mask_of(mask, NAMED, 4), mask.flatten(1))
    assert not mask_of([], NAMED, 4).any()
    assert mask_of("0:1,0:2", NAMED, 1).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("places", "error"),
    [
        (torch.zeros(3, 6, dtype=torch.bool), r"not torch.bool \(3, 6\)"),
        ([6], "place 6"),
        ([(0, 3)], r"place \(0, 3\)"),
        ([-1], "place -1"),
        ([1.5], "neither a number nor"),
        ("0-1", "is not R0:R1,C0:C1"),
        (4, "not 4"),
        ((0, 1), r"write \[\(0, 1\)\] for one place or \[0, 1\] for two"),
    ],
)
def test_what_names_no_place_is_refused(places: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        mask_of(places, NAMED, 4, "keep")
