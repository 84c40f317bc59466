"""A sample in portions, one for each range of keys, is that of one process."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import ray

from npdraw_dist.bank.patches import Drawn, LostPatches, Reservoir, draw
from npdraw_dist.bank.portion import Portion
from tests.helpers.waiting import until

BLOCKS = [
    np.random.default_rng(block).integers(0, 256, (100 + block, 3)).astype(np.uint8) for block in range(20)
]
DRAWN = [draw(patches, block, seed=1) for block, patches in enumerate(BLOCKS)]


def whole(capacity: int) -> Any:
    sample = Reservoir(capacity)
    for drawn in DRAWN:
        sample.add(drawn)
    return sample.result()


def test_a_portion_gives_the_smallest_keys_in_order_whatever_comes_first_or_twice() -> None:
    portion = Portion()
    for block in reversed(range(len(DRAWN))):
        portion.add(block, DRAWN[block].keys, DRAWN[block].patches)
    portion.add(7, DRAWN[7].keys, DRAWN[7].patches)  # the task was tried again
    assert portion.count() == sum(map(len, BLOCKS))
    assert portion.count(2**63) == sum(int((drawn.keys <= np.uint64(2**63)).sum()) for drawn in DRAWN)
    np.testing.assert_array_equal(portion.take(500), whole(500))
    assert portion.count() == 0
    assert portion.core_seconds() >= 0


def test_a_sample_gives_its_patches_away_and_has_still_seen_them() -> None:
    sample = Reservoir(500)
    for drawn in DRAWN[:5]:
        sample.add(drawn)
    seen = sample.seen
    assert sample.bytes_of_all(0.25) == 3 * 500
    assert Reservoir(10**6).bytes_of_all(0.25) == 0
    given = list(sample.give())
    assert sum(len(drawn.keys) for drawn in given) == seen == sample.seen
    assert sample.result().shape == (0, 0)
    assert [drawn.seen for drawn in given] == [0] * len(given)


def test_about_as_many_keys_as_the_sample_holds_are_below_the_likely_one() -> None:
    sample = Reservoir(1000)
    for drawn in DRAWN:
        sample.add(drawn)
    below = sum(int((drawn.keys <= np.uint64(sample.likely(1.0))).sum()) for drawn in DRAWN)
    assert 900 < below < 1100
    assert sample.likely(0.5) < sample.likely(1.0) < sample.limit(1.0)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("capacity", [300, 600, 10**6])
def test_actors_hold_the_sample_in_order_of_the_keys(capacity: int) -> None:
    from npdraw_dist.bank.ray_portions import RayPortions

    with closing(RayPortions(3, int(DRAWN[0].keys.max()) // 2)) as portions:
        ray.get([_add.remote(portions, block, drawn) for block, drawn in enumerate(DRAWN)])
        assert portions.count() == sum(map(len, BLOCKS))
        assert portions.core_seconds() > 0
        found = ray.get(portions.parts(capacity))
        assert len(found) == {300: 1, 600: 2}.get(capacity, 3), "none is empty"
        np.testing.assert_array_equal(np.concatenate(found), whole(capacity))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_process_that_died_is_told() -> None:
    from npdraw_dist.bank.ray_portions import RayPortions

    portions = RayPortions(2, 2**63)
    portions.add(0, DRAWN[0])
    portions.close()
    with pytest.raises(LostPatches):  # until the actors have ended, a call may still be answered
        until(lambda: portions.add(1, DRAWN[1]))
    with pytest.raises(LostPatches):
        portions.count()


@ray.remote(num_cpus=0)
def _add(portions: Any, block: int, drawn: Drawn) -> None:
    portions.add(block, drawn)
