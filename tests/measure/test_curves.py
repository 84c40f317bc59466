"""The plots of a training, and the numbers that are printed."""

from pathlib import Path

import numpy as np
import pytest

from npdraw_dist.measure.curves import SURROGATE, Panel, axis_limits, save_curves
from npdraw_dist.measure.metrics import COMPARED, METRICS, format_metrics
from tests.helpers.pixels import rgb

NAN = float("nan")


def lines(values: list[float]) -> tuple[list[float], list[float]]:
    return [1e4 * (i + 1) for i in range(len(values))], values


def test_curves_are_a_picture_with_a_panel_each(tmp_path: Path) -> None:
    values = lines([-9000.0, -800.0, *[-95.0 + 0.1 * i for i in range(18)]])
    panels = [Panel("ELBO", {"a": values}, dimensions=3072), Panel("KL", {SURROGATE: values})]
    save_curves(tmp_path / "curves.png", panels)
    save_curves(tmp_path / "none.png", [])
    page = rgb(tmp_path / "curves.png")
    for panel in (page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]):
        blue = np.abs(panel - np.array([31, 119, 180])).max(-1) < 30
        assert np.ptp(np.nonzero(blue)[0]) > len(page) / 4, "the start squashes the rest"
    assert rgb(tmp_path / "none.png").size > 0


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
    many, short = lines([-900.0, *[-100.0 + i for i in range(10)]]), ([5e4, 10e4], [-70.0, -60.0])
    low, high, _ = axis_limits([many, short])
    assert (low, high) == (pytest.approx(-100, abs=3), pytest.approx(-55, abs=5))
    assert axis_limits([lines([NAN])]) == (None, None, "")


def test_numbers_have_their_decimals_and_their_standard_error() -> None:
    bounds = {"elbo": -2.0, "nll_iwae": 1234.567, "nll_iwae_se": 0.4, "kl_what": 3.0}
    assert format_metrics(bounds) == "NLL 1,234.57 ± 0.40 nats, ELBO -2.00 nats"  # in the table's order
    with_prefix = {f"test/{name}": value for name, value in bounds.items()}
    assert format_metrics(with_prefix, "elbo", prefix="test/") == "ELBO -2.00 nats"
    assert METRICS["elbo"].format(None) == ""
    assert {"nll_iwae", "elbo", "bits_per_dim", "frechet_distance", "parameters"} <= set(COMPARED)
