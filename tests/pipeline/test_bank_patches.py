"""Stage `bank` gathers its patches: a pilot of shards, then what may be in the sample. No Ray."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from npdraw_dist.bank import ray_portions
from npdraw_dist.bank.build import build_bank
from npdraw_dist.bank.patches import Drawn, LostPatches
from npdraw_dist.bank.portion import Portion
from npdraw_dist.config.load import build
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.placement import Node
from npdraw_dist.data.sources import open_source
from npdraw_dist.pipeline import bank
from npdraw_dist.pipeline.bank import Collected, PatchExtractor, ShardPatches
from npdraw_dist.pipeline.inputs import claim
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import resources
from tests.helpers.in_process import map_here


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[ShardPatches]:
    """What the tasks return, which run in this process."""
    found: list[ShardPatches] = []

    def in_turn(items: Sequence[Any], work: PatchExtractor, folders: object) -> Iterator[ShardPatches]:
        for item in items:
            found.append(work(item))
            yield found[-1]

    monkeypatch.setattr(bank, "map_shards", in_turn)
    return found


def collect(folder: Path, **settings: Any) -> Collected:
    experiment = build({"data": {"shard_rows": 20}, "bank": settings})
    source = open_source(experiment.data, experiment.seed)
    with bank._collected(experiment, Store.open(str(folder), "run"), source) as found:
        return found


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


class PortionsHere:
    """`RayPortions` without Ray."""

    made: ClassVar[list["PortionsHere"]] = []

    def __init__(self, count: int, likely: int) -> None:
        self.bounds = np.array([likely * (part + 1) // count for part in range(count - 1)], np.uint64)
        self.portions = [Portion() for _ in range(count)]
        self.closed = False
        self.made.append(self)

    def add(self, block: int, drawn: Drawn) -> None:
        owner = np.searchsorted(self.bounds, drawn.keys)
        for part, portion in enumerate(self.portions):
            portion.add(block, drawn.keys[owner == part], drawn.patches[owner == part])

    def count(self, limit: int) -> int:
        return sum(portion.count(limit) for portion in self.portions)

    def core_seconds(self) -> float:
        return 100.0

    def parts(self, capacity: int) -> list[Any]:
        return [portion.take(capacity) for portion in self.portions]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[PortionsHere]:
    """A cluster, pretended, of eight CPUs, and the portions that are made on it."""
    monkeypatch.setattr(PortionsHere, "made", [])
    monkeypatch.setattr(ray_portions, "RayPortions", PortionsHere)
    monkeypatch.setattr(bank, "ray_runs", lambda: True)
    monkeypatch.setattr(bank, "has_gpu", lambda scale: False)
    monkeypatch.setattr(resources, "living_nodes", lambda: [Node(8)])
    return PortionsHere.made


@pytest.mark.parametrize("share", [1, 0.02])
def test_a_large_sample_is_never_in_the_driver(
    share: float,
    returned: list[ShardPatches],
    shared: list[PortionsHere],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Of 2,000 patches of 25 bytes, two portions by their size. Also where the pilot misleads."""
    whole = collect(tmp_path, max_patches=2000)
    assert not shared
    limit: Callable[[Any, float], int] = bank.Reservoir.limit
    monkeypatch.setattr(bank.Reservoir, "limit", lambda sample, part: int(share * limit(sample, part)))
    monkeypatch.setattr(bank, "SHARED_BYTES", 40_000)
    monkeypatch.setattr(bank, "PART_BYTES", 25_000)
    returned.clear()
    found = collect(tmp_path, max_patches=2000)
    assert sum(len(result.drawn.patches) for result in returned[18:]) == 0, "after the pilot"
    assert found.patches.size == 0
    (portions,) = shared
    assert (len(portions.portions), portions.closed) == (2, True)
    first = portions.parts(2000)
    np.testing.assert_array_equal(np.concatenate(first)[:2000], whole.patches)
    assert (found.seen, found.images) == (whole.seen, whole.images)
    assert found.core_seconds > 100 + whole.core_seconds / 2


@pytest.mark.parametrize(
    ("settings", "count"), [({"shards": 1}, 0), ({"shards": 5}, 5), ({}, 8), ({"max_patches": 1000}, 2)]
)
def test_the_number_of_portions_is_that_of_the_setting_or_by_size(
    settings: dict[str, Any],
    count: int,
    returned: list[ShardPatches],
    shared: list[PortionsHere],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bank, "SHARED_BYTES", 20_000)
    monkeypatch.setattr(bank, "PART_BYTES", 15_000)
    collect(tmp_path, **settings)
    assert len(returned) >= 72
    assert [len(portions.portions) for portions in shared] == [count] * (count > 0)


def test_patches_that_were_lost_are_read_again(
    shared: list[PortionsHere], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """A process that holds patches dies once: the bank is the same. If it always dies, one line says so."""
    experiment = build({"data": {"shard_rows": 20}, "bank": {"size": 10, "max_patches": 2000}})
    monkeypatch.setattr(bank, "map_shards", map_here)
    alone = build_bank_of(experiment, tmp_path / "alone")
    assert not shared
    monkeypatch.setattr(bank, "SHARED_BYTES", 40_000)
    dies = iter([True, False])

    def build_shared(*arguments: Any) -> Any:
        if next(dies, True):
            raise LostPatches("died")
        parts, channels, settings, seed, _ = arguments
        return build_bank(np.concatenate(parts)[:2000], channels, settings, seed)

    monkeypatch.setattr(bank, "build_shared_bank", build_shared)
    again = build_bank_of(experiment, tmp_path / "again")
    assert [portions.closed for portions in shared] == [True, True]
    assert again == alone
    with pytest.raises(LostPatches):
        build_bank_of(experiment, tmp_path / "never")


def build_bank_of(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The bank's manifest, without what a clock gave."""
    store = Store.open(str(folder), "run")
    experiment, _ = claim(experiment, store)
    manifest = bank.run(experiment, store)
    return {key: value for key, value in manifest.items() if "second" not in key and key != "images_per_s"}
