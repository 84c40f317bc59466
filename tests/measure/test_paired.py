"""Paired differences against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from npdraw_dist.measure.paired import holm, paired


def by_image(*values: float, name: str = "image") -> dict[str, float]:
    return {f"{name}-{number}": value for number, value in enumerate(values)}


def test_errors_are_those_of_paired_images_and_seeds() -> None:
    a = [by_image(1, 2, 3, 6), by_image(2, 2, 5, 7)]
    b = [by_image(0, 1, 1, 4), by_image(0, 0, 2, 5)]
    found = paired([(a[0], b[0]), (a[1], b[1])])  # differences 1 1 2 2 and 2 2 3 2
    means = [1.5, 1.5, 2.5, 2.0]  # of each image over seeds
    assert found.mean == pytest.approx(1.875)
    variance = sum((x - 1.875) ** 2 for x in means) / 3
    assert found.se_images == pytest.approx(math.sqrt(variance / 4))
    assert found.se_seeds == pytest.approx(abs(2.25 - 1.5) / 2)  # of two values: half their distance
    assert found.error == pytest.approx(math.hypot(found.se_images, found.se_seeds))
    # A seed with images of its own, whose noise is that of the seed's mean: differences 2 2 3.
    own = paired([(a[0], b[0]), (by_image(2, 2, 5, name="other"), by_image(0, 0, 2, name="other"))])
    assert (own.se_images, own.se_seeds) == (0, pytest.approx((7 / 3 - 1.5) / 2))
    assert (own.mean, own.images) == (pytest.approx((1.5 + 7 / 3) / 2), 7)
    partly = (by_image(2, 2) | {"other-0": 4.0}, by_image(0, 0) | {"other-0": 1.0})
    assert paired([(a[0], b[0]), partly]).images == 7
    single = paired([(a[0], b[0])])
    assert single.se_images > 0
    assert all(map(math.isnan, (single.error, single.half, single.p_value)))
    assert paired([({"": 1.0}, {"": 4.0}), ({"": 2.0}, {"": 5.0})]).se_images == 0


def test_intervals_and_p_values_are_those_of_a_t_test_over_seeds() -> None:
    values = [2.0, 2.6, 1.1, 3.0]
    found = paired([({"": value}, {"": 0.0}) for value in values])
    reference = stats.ttest_1samp(values, 0.0)
    low, high = reference.confidence_interval(0.95)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.mean - found.half, found.mean + found.half) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_over_seeds_and_images_covers_the_truth() -> None:
    generator, covered, runs = np.random.default_rng(0), 0, 1000
    for _ in range(runs):
        of_seeds, of_images = generator.normal(0, 0.5, (3, 1)), generator.normal(0, 0.3, 40)
        found = of_seeds + of_images + generator.normal(0, 0.3, (3, 40))
        difference = paired([(by_image(*row), by_image(*np.zeros(40))) for row in found])
        assert 2 <= difference.degrees <= 2 + 39
        covered += abs(difference.mean) <= difference.half
    assert 0.9 < covered / runs < 0.98  # with two standard errors 0.84


def test_claims_are_corrected_for_their_number() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": math.nan, "d": 0.03, "e": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": math.nan, "d": 0.06, "e": 0.02}, nan_ok=True)
