"""Schedules at their ends, between them, and from the middle of a run."""

import numpy as np

from npdraw_dist.core.objective import ramp


def test_ramp_is_linear_and_then_stays() -> None:
    seen = np.linspace(0, 300, 31)
    expected = np.interp(seen, [0, 200], [20, 5])
    np.testing.assert_allclose([ramp(x, 20, 5, 200) for x in seen], expected)
    assert ramp(-1, 20, 5, 10) == 20
    assert ramp(0, 20, 5, 0) == ramp(10, 20, 5, 0) == 5  # over no images it is the end
