"""Stage `bank` gathers its patches: a pilot of shards, then what may be in the sample. No Ray."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdraw_dist.config.load import build
from npdraw_dist.data.shards import open_source
from npdraw_dist.pipeline import bank
from npdraw_dist.pipeline.bank import Collected, ShardPatches
from npdraw_dist.pipeline.store import Store


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[ShardPatches]:
    """What the tasks return, which run in this process."""
    found: list[ShardPatches] = []

    def in_turn(
        items: Sequence[Any], work: Callable[[Any], ShardPatches], folders: object
    ) -> Iterator[ShardPatches]:
        for item in items:
            found.append(work(item))
            yield found[-1]

    monkeypatch.setattr(bank, "map_items", in_turn)
    return found


def collect(folder: Path, **settings: Any) -> Collected:
    experiment = build({"data": {"shard_rows": 20}, "bank": settings})
    source = open_source(experiment.data, experiment.seed)
    return bank._collect(experiment, Store.open(str(folder), "run"), source)


def test_the_sample_is_that_of_all_patches_and_few_leave_the_tasks(
    returned: list[ShardPatches], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = collect(tmp_path, max_patches=500)
    sent = sum(len(result.drawn.patches) for result in returned)
    assert len(returned) == 72  # shards of 20 of 1,438 images, each read once
    returned.clear()
    monkeypatch.setattr(bank, "PILOT", 1000)
    whole = collect(tmp_path, max_patches=500)
    assert sum(len(result.drawn.patches) for result in returned) == whole.seen == few.seen
    np.testing.assert_array_equal(few.patches, whole.patches)
    assert (few.images, len(few.patches)) == (whole.images, 500) == (1438, 500)
    pilot = 18 / 72 * whole.seen
    assert sent < 1.1 * pilot + 2 * 500


def test_the_pilot_of_large_shards_is_a_few_of_them(
    returned: list[ShardPatches], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = collect(tmp_path, max_patches=500)
    returned.clear()
    monkeypatch.setattr(bank, "PILOT_IMAGES", 100)  # of 20 images a shard
    few = collect(tmp_path, max_patches=500)
    pilot = [result for result in returned[:10] if len(result.drawn.patches) == result.drawn.seen]
    assert len(pilot) == 6
    np.testing.assert_array_equal(few.patches, whole.patches)


@pytest.mark.parametrize("share", [1e-6, 0.02])
def test_a_pilot_that_misleads_costs_a_second_look(
    share: float, returned: list[ShardPatches], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The limit is far too low: the other shards are read again, and counted once."""
    limit: Callable[[Any, float], int] = bank.Reservoir.limit
    whole = collect(tmp_path, max_patches=2000)
    monkeypatch.setattr(bank.Reservoir, "limit", lambda sample, part: int(share * limit(sample, part)))
    returned.clear()
    again = collect(tmp_path, max_patches=2000)
    assert len(returned) == 18 + 2 * 54
    np.testing.assert_array_equal(again.patches, whole.patches)
    assert (again.seen, again.images) == (whole.seen, whole.images)
