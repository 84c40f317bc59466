"""The plots of a training: their number, their limits and what is written on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from npdraw_dist.measure.curves import SURROGATE, Panel, axis_limits, save_curves
from tests.helpers.pixels import rgb

NAN = float("nan")


def lines(values: list[float]) -> tuple[list[float], list[float]]:
    return [1e4 * (i + 1) for i in range(len(values))], values


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from now on."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **named: Any) -> None:
        saved.append(self)
        save(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_curves_are_a_picture_with_lines(tmp_path: Path) -> None:
    panels = [Panel(f"nll {i}", {"training": lines([3.0, 2.0, NAN])}) for i in range(3)]
    save_curves(tmp_path / "curves.png", panels)
    page = rgb(tmp_path / "curves.png")
    assert page.shape[:2] == (580, 1000)
    blue = np.abs(page - np.array([31, 119, 180])).max(-1) < 30
    halves = [blue[:290, :500], blue[:290, 500:], blue[290:, :500], blue[290:, 500:]]
    assert [bool(half.any()) for half in halves] == [True, True, True, False]
    save_curves(tmp_path / "none.png", [])
    assert (tmp_path / "none.png").exists()


def test_axes_say_their_units(tmp_path: Path, figures: list[Figure]) -> None:
    line = {"training": lines([-3000.0, -2900.0, -2800.0, -2750.0])}
    panels = [Panel("ELBO", line, dimensions=3072), Panel("KL", {SURROGATE: line["training"]})]
    save_curves(tmp_path / "curves.png", panels)
    first, second = figures[0].axes
    assert (first.get_xlabel(), first.get_ylabel()) == ("images seen", "nats")
    right = first.child_axes[0]
    assert right.get_ylabel() == "bits/dim"
    # The left axis in nats, divided by 3072 ln 2, with the sign of an error.
    expected = [-y / (3072 * np.log(2)) for y in first.get_ylim()]
    np.testing.assert_allclose(sorted(right.get_ylim()), sorted(expected))
    assert second.child_axes == []
    assert [first.lines[0].get_linestyle(), second.lines[0].get_linestyle()] == ["-", "--"]
    assert first.xaxis.get_major_formatter()(40_000) == "40k"


def test_the_start_does_not_squash_the_rest(tmp_path: Path, figures: list[Figure]) -> None:
    values = [-9000.0, -800.0, *[-95.0 + 0.1 * i for i in range(18)]]
    save_curves(tmp_path / "curves.png", [Panel("ELBO", {"a": lines(values)})])
    (axes,) = figures[0].axes
    low, high = axes.get_ylim()
    assert -96 < low < -94
    assert -94 < high < -93
    assert axes.get_title(loc="right") == "2 early points off the axis, up to -9,000"
    assert axes.get_xlim()[0] < 1e4, "the start is still on the axis of images"


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], 1.0, 5.0),  # the start squashes nothing
        ([1000.0, 2.0], 2.0, 1000.0),  # too few points to leave one out
        ([100.0, 1.0, NAN, NAN, NAN, NAN], 1.0, 100.0),
        ([1.0, 1.0, 1.0, 1.0, 50.0, 1.0], 1.0, 50.0),  # what comes late is never cut off
        ([2.0, 2.0, 2.0], 2.0, 2.0),
    ],
)
def test_limits_hold_all_other_points(values: list[float], low: float, high: float) -> None:
    lowest, highest, note = axis_limits([lines(values)])
    assert note == ""
    assert lowest is not None
    assert highest is not None
    assert lowest < low <= high < highest
    assert highest - lowest <= 1.2 * max(high - low, 1)


def test_limits_are_of_all_lines() -> None:
    short = ([5e4, 10e4], [-70.0, -60.0])
    low, high, _ = axis_limits([lines([-900.0, *[-100.0 + i for i in range(10)]]), short])
    assert low is not None
    assert high is not None
    assert -103 < low < -98
    assert -60 < high < -50
    assert axis_limits([lines([NAN])]) == (None, None, "")
