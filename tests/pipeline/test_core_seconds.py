"""Which patches stage `bank` gathers, and the CPU seconds of the stages without a training loop."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdraw_dist.config.load import build, with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data import ingest
from npdraw_dist.data.ingest import Ingest
from npdraw_dist.pipeline import bank, data, parse, sample
from npdraw_dist.pipeline.bank import Collected, ShardPatches
from npdraw_dist.pipeline.parse import ParseWriter
from npdraw_dist.pipeline.scores import score
from npdraw_dist.pipeline.store import FOLDERS, Store
from tests.helpers.image_files import images
from tests.helpers.in_process import killed, map_in_process
from tests.pipeline.test_inputs import experiment as experiment_of

TASK, DRIVER, SCORES = 10.0, 1.0, 7.0  # CPU seconds of a shard's task, of the driver for it, and of scoring


class Clock:
    """The CPU seconds of a process."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spending(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def spends(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return spends

    def elsewhere(self, kill_at: int | None = None) -> Callable[..., Iterator[Any]]:
        """`map_items` whose work takes no CPU time of this process, which takes DRIVER for each result."""

        def mapped(
            items: Sequence[Any], work: Callable[[Any], Any], pool: object = None, folders: object = ()
        ) -> Iterator[Any]:
            for number, item in enumerate(items):
                if number == kill_at:
                    killed()
                before = self.now
                results = list(map_in_process([item], work))
                self.now = before + DRIVER
                yield from results

        return mapped


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "process_time", clock)
    monkeypatch.setattr(time, "thread_time", clock)
    for module in (ingest, bank, parse):
        monkeypatch.setattr(module, "map_items", clock.elsewhere())
        monkeypatch.setattr(module, "ray_runs", lambda: True)
    monkeypatch.setattr(bank, "extract", clock.spending(TASK, bank.extract))
    for work, name in ((Ingest, "_write"), (ParseWriter, "parse")):
        monkeypatch.setattr(work, name, clock.spending(TASK, getattr(work, name)))
    return clock


@pytest.fixture
def experiment(tmp_path: Path, store: Store) -> Experiment:
    """A run of 40 images: 4 shards of training images, and one each for validation and test."""
    found = experiment_of(images(tmp_path / "images", 40), data={"shard_rows": 8})
    store.claim(found)
    return found


def shards(store: Store, *splits: str) -> int:
    return sum(len(list(Path(store.path("data", split)).glob("*.parquet"))) for split in splits)


def test_work_in_this_process_counts_once(
    experiment: Experiment, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (ingest, bank, parse):
        monkeypatch.setattr(module, "map_items", map_in_process)
        monkeypatch.setattr(module, "ray_runs", lambda: False)
    read = data.run(experiment, store)
    patches = bank.run(experiment, store)
    parses = parse.run(experiment, store)
    assert patches["core_seconds"] == shards(store, "train") * TASK > 0
    count = shards(store, "train", "valid", "test")
    for manifest in (read, parses):
        assert manifest["core_seconds"] == manifest["actor_core_seconds"] == count * TASK > 0


@pytest.mark.usefixtures("clock")
def test_the_bank_counts_actors_and_a_later_split_adds_to_data_and_parse(
    experiment: Experiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank counts tasks, the driver, and the actors that share its patches."""
    build, actors_s = bank.build_bank, 100.0

    def shared(*args: Any) -> Any:
        parts, facts = build(*args)
        return parts, replace(facts, actor_core_seconds=actors_s)

    monkeypatch.setattr(bank, "build_bank", shared)
    fewer = with_changes(experiment, {"eval": {"split": "valid"}})
    first = [data.run(fewer, store)]
    manifest = bank.run(experiment, store)
    first.append(parse.run(fewer, store))
    assert manifest["core_seconds"] == actors_s + shards(store, "train") * (TASK + DRIVER) > actors_s
    count = shards(store, "train", "valid")
    assert [found["core_seconds"] for found in first] == 2 * [count * (TASK + DRIVER)]
    both = [stage.run(experiment, store) for stage in (data, parse)]
    more = shards(store, "train", "valid", "test")
    assert [found["core_seconds"] for found in both] == 2 * [more * (TASK + DRIVER)]
    assert more > count


def test_a_resumed_stage_counts_what_a_killed_one_wrote(
    experiment: Experiment, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 2
    for stage, module in ((data, ingest), (parse, parse)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "map_items", clock.elsewhere(kill_at=done))
            with pytest.raises(KeyboardInterrupt):
                stage.run(experiment, store)
        manifest = stage.run(experiment, store)
        count = shards(store, "train", "valid", "test")
        assert manifest["actor_core_seconds"] == count * TASK
        # The seconds of the killed driver itself are lost.
        assert manifest["core_seconds"] == count * TASK + (count - done) * DRIVER
        if stage is data:
            bank.run(experiment, store)


@pytest.fixture
def finished(run_in_process: Path, tmp_path: Path) -> Store:
    """A run in which all stages but the last have finished."""
    shutil.copytree(run_in_process, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.json").unlink()
    return Store.open(str(tmp_path), "copy")


def test_samples_and_both_splits_scores_count(
    finished: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "score", clock.spending(SCORES, score))
    own = finished.config()
    first = sample.run(with_changes(own, {"eval": {"split": "valid"}}), finished)
    assert first["sample/core_seconds"] == SCORES
    both = sample.run(with_changes(own, {"eval": {"split": "test"}}), finished)
    assert both["sample/core_seconds"] == 2 * SCORES
    assert {"valid/nll_iwae", "test/nll_iwae"} <= both.keys()
    for stage, folder in FOLDERS.items():  # metrics.json states the seconds of every stage
        assert both[f"{stage}/core_seconds"] == finished.read_json(folder, "manifest.json")["core_seconds"]


Group = list[ShardPatches]


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[ShardPatches]:
    """The results of the tasks, which run in this process."""
    found: list[ShardPatches] = []

    def in_turn(items: Sequence[Any], work: Callable[[Any], Group]) -> Iterator[Group]:
        for item in items:
            group = work(item)
            found.extend(group)
            yield group

    monkeypatch.setattr(bank, "map_items", in_turn)
    return found


def collect(folder: Path, **settings: Any) -> Collected:
    experiment = build({"data": {"shard_rows": 20}, "bank": settings})
    store = Store.open(str(folder), "run")
    data.run(experiment, store)
    return bank._collect(experiment, store.shards())


def test_the_sample_is_that_of_all_patches_and_few_leave_the_tasks(
    returned: list[ShardPatches], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pilots = bank.PILOT
    few = collect(tmp_path, max_patches=500)
    sent = sum(len(result.drawn.patches) for result in returned)
    assert len(returned) == 72  # shards of 20, each read once
    assert sum(result.images for result in returned) == 1438
    returned.clear()
    monkeypatch.setattr(bank, "PILOT", 1000)
    whole = collect(tmp_path, max_patches=500)
    assert sum(len(result.drawn.patches) for result in returned) == whole.seen == few.seen
    np.testing.assert_array_equal(few.patches, whole.patches)
    assert len(few.patches) == 500
    pilot = 18 / 72 * whole.seen
    assert sent < 1.1 * pilot + 2 * 500
    returned.clear()
    monkeypatch.setattr(bank, "PILOT", pilots)
    monkeypatch.setattr(bank, "PILOT_IMAGES", 100)  # a pilot of few shards, with 20 images each
    few = collect(tmp_path, max_patches=500)
    assert sum(len(found.drawn.patches) == found.drawn.seen for found in returned[:10]) == 6
    np.testing.assert_array_equal(few.patches, whole.patches)


def test_of_very_many_shards_some_are_read(
    returned: list[ShardPatches], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bank, "ENOUGH_SHARDS", 24)
    some = collect(tmp_path, max_patches=50)
    again = collect(tmp_path, max_patches=50)
    assert len(returned) == 2 * 24
    assert some.images == sum(result.images for result in returned) / 2 < 500
    np.testing.assert_array_equal(some.patches, again.patches)
    returned.clear()
    monkeypatch.setattr(bank, "ENOUGH_SHARDS", 1)
    whole = collect(tmp_path, max_patches=2000)
    assert len(returned) == 23  # as many as have 8 * 2000 places
    assert len(whole.patches) == 2000


def test_a_misleading_pilot_costs_a_second_reading(
    returned: list[ShardPatches], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The limit is far too low: the other shards are read again, and counted once."""
    limit: Callable[[Any, float], int] = bank.Reservoir.limit
    whole = collect(tmp_path, max_patches=2000)
    monkeypatch.setattr(bank.Reservoir, "limit", lambda sample, part: int(0.02 * limit(sample, part)))
    returned.clear()
    again = collect(tmp_path, max_patches=2000)
    assert len(returned) == 18 + 2 * 54
    np.testing.assert_array_equal(again.patches, whole.patches)
    assert again.seen == whole.seen
