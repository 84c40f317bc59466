"""The requests of a run before its first training step grow with the shards by a constant, on moto's S3."""

import pytest

from tests.helpers.many_shards import simulate_s3

pytestmark = pytest.mark.slow


def test_a_shard_takes_at_most_four_requests_before_the_first_step() -> None:
    few, many = (simulate_s3(count, scaled=True) for count in (160, 320))
    assert many["requests"] - few["requests"] <= 4 * 160
    assert max(few["driver_mb"], many["driver_mb"]) <= 1024
