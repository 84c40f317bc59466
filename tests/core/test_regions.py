"""Places as people name them."""

from typing import Any

import numpy as np
import pytest
import torch

from npdraw_dist.core.editing import mask_of, place_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.grid import Grid

GRID = Grid(8, 12, 4, 4)  # 2 rows, 3 columns


@pytest.mark.parametrize(
    "places",
    [
        "0:1,1:3",
        [1, 2],
        [(0, 1), 2],
        {1, 2},
        [False, True, True, False, False, False],
        torch.tensor([0, 1, 1, 0, 0, 0], dtype=torch.bool),
        np.array([[False, True, True], [False, False, False]]),
    ],
)
def test_the_same_places_in_other_words(places: Any) -> None:
    assert mask_of(places, GRID, 5).tolist() == [False, True, True, False, False, False]


def test_a_region_ends_before_its_last_numbers() -> None:
    assert mask_of("0:1,0:2", GRID, 1).tolist() == [True, True, False, False, False, False]


def test_each_drawing_has_places_of_its_own() -> None:
    mask = torch.rand(4, 2, 3) > 0.5
    assert torch.equal(mask_of(mask, GRID, 4), mask.flatten(1))
    assert torch.equal(mask_of(mask.flatten(1), GRID, 4), mask.flatten(1))
    assert not mask_of([], GRID, 4).any()


@pytest.mark.parametrize(
    ("places", "error"),
    [
        (torch.zeros(6), r"keep is bool \(6,\) or \(4, 6\), not torch.float32 \(6,\)"),
        (torch.zeros(3, 6, dtype=torch.bool), r"not torch.bool \(3, 6\)"),
        ([6], "place 6: the grid has 2 rows and 3 columns, 6 places"),
        ([(0, 3)], r"place \(0, 3\): the grid"),
        ([-1], "place -1"),
        ([1.5], "neither a number nor"),
        (["0:1"], "neither a number nor"),
        ("0-1", "is not R0:R1,C0:C1"),
        (None, "keep: a mask, a list of places or text .*, not None"),
        (4, "not 4"),
    ],
)
def test_what_names_no_place_is_refused(places: Any, error: str) -> None:
    with pytest.raises(UserError, match=error):
        mask_of(places, GRID, 4, "keep")


def test_a_place_has_a_number_and_a_row_and_column() -> None:
    assert [place_of((row, column), GRID) for row in range(2) for column in range(3)] == list(range(6))
    assert place_of(np.int64(4), GRID) == 4
