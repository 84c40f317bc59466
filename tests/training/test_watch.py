"""When a validation counts as far below the best one."""

import math

import pytest

from npdraw_dist.training.checkpoint import Criterion
from npdraw_dist.training.watch import Watch, far_below

ELBO = Criterion("valid/elbo", "max")


@pytest.mark.parametrize(
    ("best", "now", "far"),
    [
        (-60.0, -61.9, False),  # 2 nats
        (-60.0, -62.1, True),
        (-60.0, -59.0, False),  # better
        (-9000.0, -9179.0, False),  # 2%
        (-9000.0, -9181.0, True),
        (9000.0, 8821.0, False),  # a density can be above 1
        (9000.0, 8819.0, True),
        (-60.0, -math.inf, True),
    ],
)
def test_far_is_two_nats_and_two_percent(best: float, now: float, far: bool) -> None:
    assert far_below(best, now) == far


def test_each_fall_is_said_once() -> None:
    """Again only after a new best."""
    watch = Watch(ELBO, {})
    values = [-90.0, -80.0, -85.0, -90.0, -81.0, -85.0, -79.0, -82.0]
    lines = [watch.see({"valid/elbo": value, "images_seen": number}) for number, value in enumerate(values)]
    assert [number for number, line in enumerate(lines) if line] == [2, 7]
    assert lines[7] == "validation fell: valid/elbo is -82.00 after 7 images; its best was -79.00 after 6"


def test_a_metric_that_falls_is_compared_the_other_way_round() -> None:
    watch = Watch(Criterion("valid/nll", "min"), {})
    assert watch.see({"valid/nll": 40.0, "images_seen": 1}) is None
    assert watch.see({"valid/nll": 30.0, "images_seen": 2}) is None
    assert watch.see({"valid/nll": 33.0, "images_seen": 3}) is not None


def test_a_first_validation_that_is_not_a_number_is_no_best() -> None:
    watch = Watch(ELBO, {})
    watch.see({"valid/elbo": math.nan, "images_seen": 1})
    assert watch.see({"valid/elbo": -90.0, "images_seen": 2}) is None
    fall = watch.see({"valid/elbo": -95.0, "images_seen": 3})
    assert fall is not None
    assert "its best was -90.00 after 2" in fall


def test_without_a_criterion_nothing_is_seen() -> None:
    watch = Watch(None, {"record": {"valid/elbo": -90.0}})
    assert watch.see({"valid/elbo": -90.0, "images_seen": 1}) is None
    assert watch.summary() == {}
