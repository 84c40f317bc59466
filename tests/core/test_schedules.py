"""Schedules at their ends, between them, and from the middle of a run."""

import numpy as np
import pytest

from npdraw_dist.core.objective import learning_rate_factor, ramp


def test_ramp_is_linear_and_then_stays() -> None:
    seen = np.linspace(0, 300, 31)
    expected = np.interp(seen, [0, 200], [20, 5])
    np.testing.assert_allclose([ramp(x, 20, 5, 200) for x in seen], expected)
    assert ramp(-1, 20, 5, 10) == 20
    assert ramp(0, 20, 5, 0) == ramp(10, 20, 5, 0) == 5  # over no images it is the end


def test_a_rate_that_stays_and_falls_on_a_line() -> None:
    rates = [learning_rate_factor(x, 1000, 100, 400) for x in range(1001)]
    assert rates[:3] == pytest.approx([1 / 101, 2 / 101, 3 / 101])
    assert set(rates[100:601]) == {1.0}
    assert np.diff(rates[600:]) == pytest.approx(-1 / 400)
    assert rates[1000] == 0
    assert learning_rate_factor(5000, 1000, 100, 400) == 0
    assert learning_rate_factor(0, 1000, 0, 0) == 1  # no warm-up, no fall
    assert learning_rate_factor(990, 1000, 0, 0) == 1
