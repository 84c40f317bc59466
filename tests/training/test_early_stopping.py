"""When a validation counts as far below the best one."""

import math

import pytest

from npdraw_dist.training.checkpoint import Criterion
from npdraw_dist.training.early_stopping import EarlyStopping, far_below

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
    watch = EarlyStopping(ELBO, {})
    values = [-90.0, -80.0, -85.0, -90.0, -81.0, -85.0, -79.0, -82.0]
    lines = [watch.see({"valid/elbo": value, "images_seen": number}) for number, value in enumerate(values)]
    assert [number for number, line in enumerate(lines) if line] == [2, 7]
    assert lines[7] == "validation fell: valid/elbo is -82.00 after 7 images; its best was -79.00 after 6"


def test_a_metric_that_falls_is_compared_the_other_way_round() -> None:
    watch = EarlyStopping(Criterion("valid/nll", "min"), {})
    assert watch.see({"valid/nll": 40.0, "images_seen": 1}) is None
    assert watch.see({"valid/nll": 30.0, "images_seen": 2}) is None
    assert watch.see({"valid/nll": 33.0, "images_seen": 3}) is not None


def test_a_first_validation_that_is_not_a_number_is_no_best() -> None:
    watch = EarlyStopping(ELBO, {})
    watch.see({"valid/elbo": math.nan, "images_seen": 1})
    assert watch.see({"valid/elbo": -90.0, "images_seen": 2}) is None
    fall = watch.see({"valid/elbo": -95.0, "images_seen": 3})
    assert fall is not None
    assert "its best was -90.00 after 2" in fall


def seen(watch: EarlyStopping, values: list[float], may_end: bool = True) -> list[bool]:
    """Whether training has ended after each of the validations."""
    ended = []
    for number, value in enumerate(values):
        watch.see({"valid/elbo": value, "images_seen": number}, may_end)
        ended.append(watch.ended)
    return ended


def test_training_ends_after_falls_in_a_row() -> None:
    watch = EarlyStopping(ELBO, {}, patience=2)
    assert seen(watch, [-90.0, -80.0, -85.0, -81.0, -85.0]) == [False] * 5  # -81 is not far below
    assert "training ends, after 2 such" in str(watch.see({"valid/elbo": -86.0, "images_seen": 5}))
    assert watch.ended
    assert watch.summary()["ended_early"]
    assert "ended_early" not in EarlyStopping(ELBO, {}, patience=2).summary()


def test_a_bound_that_comes_back_ends_nothing() -> None:
    """What a VQ-VAE did after 10,000 images: a validation that is better than the one before is no fall."""
    watch = EarlyStopping(ELBO, {}, patience=3)
    assert not any(seen(watch, [-115.0, -219.0, -149.0, -130.0, -125.0, -121.0, -118.0, -114.0]))
    assert seen(watch, [-120.0, -119.0, -121.0, -120.0, -122.0]) == [False] * 4 + [True]


def test_falls_that_do_not_count_end_nothing() -> None:
    watch = EarlyStopping(ELBO, {}, patience=2)
    assert not any(seen(watch, [-80.0, -85.0, -90.0, -95.0], may_end=False))
    assert seen(watch, [-95.0, -96.0]) == [False, True]
    assert not any(seen(EarlyStopping(ELBO, {}), [-80.0, -85.0, -90.0, -95.0]))  # no patience asked


def test_the_falls_in_a_row_are_counted_over_restarts() -> None:
    watch = EarlyStopping(ELBO, {}, patience=2)
    seen(watch, [-80.0, -85.0])
    again = EarlyStopping(ELBO, {"watch": watch.as_json()}, patience=2)
    assert not again.ended
    assert seen(again, [-86.0]) == [True]
    assert EarlyStopping(ELBO, {"watch": again.as_json()}, patience=2).ended


def test_a_validation_without_the_metric_is_not_seen() -> None:
    watch = EarlyStopping(ELBO, {})
    assert watch.see({"valid/nll": 90.0, "images_seen": 1}) is None
    assert watch.note() == ""
