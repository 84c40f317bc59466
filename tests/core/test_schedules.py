"""Schedules at their ends, between them, and from the middle of a run."""

import numpy as np
import pytest

from npdraw_dist.core.objective import ramp, warmup_cosine, warmup_linear


def test_ramp_is_linear_and_then_stays() -> None:
    seen = np.linspace(0, 300, 31)
    expected = np.interp(seen, [0, 200], [20, 5])
    np.testing.assert_allclose([ramp(x, 20, 5, 200) for x in seen], expected)
    assert ramp(-1, 20, 5, 10) == 20
    assert ramp(0, 20, 5, 0) == ramp(10, 20, 5, 0) == 5  # over no images it is the end


def test_warmup_rises_linearly_to_one() -> None:
    rates = [warmup_cosine(x, 1000, 100) for x in range(101)]
    assert rates[0] > 0
    np.testing.assert_allclose(np.diff(rates), 1 / 101)
    assert rates[100] == warmup_cosine(0, 1000, 0) == pytest.approx(1)
    assert 0 < warmup_cosine(99, 100, 100) < 1


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_cosine_falls_from_one_to_the_floor(floor: float) -> None:
    seen = np.linspace(100, 1000, 37)
    rates = np.array([warmup_cosine(x, 1000, 100, floor) for x in seen])
    np.testing.assert_allclose(rates[[0, 18, -1]], [1, (1 + floor) / 2, floor], atol=1e-12)
    assert (np.diff(rates) < 0).all()
    assert warmup_cosine(5000, 1000, 100, floor) == pytest.approx(floor)


def test_a_rate_that_stays_and_falls_on_a_line() -> None:
    rates = [warmup_linear(x, 1000, 100, 400) for x in range(1001)]
    assert rates[:3] == pytest.approx([1 / 101, 2 / 101, 3 / 101])
    assert set(rates[100:601]) == {1.0}
    assert np.diff(rates[600:]) == pytest.approx(-1 / 400)
    assert rates[1000] == 0
    assert warmup_linear(5000, 1000, 100, 400) == 0
    assert warmup_linear(0, 1000, 0, 0) == 1  # no warm-up, no fall
    assert warmup_linear(990, 1000, 0, 0) == 1
