"""Which patches stage `bank` gathers, and the CPU seconds of the stages without a training loop."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npdraw_dist.data.shard_writer import Encoded

from npdraw_dist.config.load import build, with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data import shard_writer
from npdraw_dist.data.shards import open_source
from npdraw_dist.pipeline import bank, parse, sample
from npdraw_dist.pipeline.bank import Collected, ShardPatches
from npdraw_dist.pipeline.inputs import claim
from npdraw_dist.pipeline.parse import ParseEncoder
from npdraw_dist.pipeline.scores import score
from npdraw_dist.pipeline.store import FOLDERS, Store
from tests.helpers.image_files import images
from tests.helpers.in_process import killed, map_here
from tests.pipeline.test_inputs import experiment as asked

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
                here = self.now
                results = list(map_here([item], work))
                self.now = here + DRIVER
                yield from results

        return mapped


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "process_time", clock)
    monkeypatch.setattr(time, "thread_time", clock)
    for module in (bank, shard_writer):
        monkeypatch.setattr(module, "map_items", clock.elsewhere())
        monkeypatch.setattr(module, "ray_runs", lambda: True)
    monkeypatch.setattr(bank, "extract", clock.spending(TASK, bank.extract))
    encode: Callable[..., Encoded] = ParseEncoder.__call__
    monkeypatch.setattr(ParseEncoder, "__call__", clock.spending(TASK, encode))
    return clock


@pytest.fixture
def experiment(tmp_path: Path, store: Store) -> Experiment:
    """Of 40 images: 4 shards of training, and one each of validation and test."""
    found = asked(images(tmp_path / "data", 40), data={"shard_rows": 8})
    claim(found, store)
    return found


def shards(store: Store, *splits: str) -> int:
    return sum(len(list(Path(store.path("parses", split)).glob("*.parquet"))) for split in splits)


def test_work_in_this_process_counts_once(
    experiment: Experiment, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bank, shard_writer):
        monkeypatch.setattr(module, "map_items", map_here)
        monkeypatch.setattr(module, "ray_runs", lambda: False)
    patches = bank.run(experiment, store)
    parses = parse.run(experiment, store)
    assert patches["core_seconds"] == shards(store, "train") * TASK > 0
    count = shards(store, "train", "valid", "test")
    assert parses["core_seconds"] == parses["actor_core_seconds"] == count * TASK > 0


@pytest.mark.usefixtures("clock")
def test_the_bank_counts_actors_and_a_later_split_adds_to_the_parse(
    experiment: Experiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the tasks and the driver, the bank counts actors that share its patches."""
    build, actors_s = bank.build_bank, 100.0

    def shared(*args: Any) -> Any:
        parts, facts = build(*args)
        return parts, replace(facts, actor_core_seconds=actors_s)

    monkeypatch.setattr(bank, "build_bank", shared)
    manifest = bank.run(experiment, store)
    first = parse.run(with_changes(experiment, {"eval": {"split": "valid"}}), store)
    assert manifest["core_seconds"] == actors_s + shards(store, "train") * (TASK + DRIVER) > actors_s
    assert first["core_seconds"] == shards(store, "train", "valid") * (TASK + DRIVER)
    both = parse.run(experiment, store)
    count = shards(store, "train", "valid", "test")
    assert both["core_seconds"] == count * (TASK + DRIVER) > first["core_seconds"]


def test_a_resumed_parse_counts_what_a_killed_one_wrote(
    experiment: Experiment, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.run(experiment, store)
    done = 2
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "map_items", clock.elsewhere(kill_at=done))
        with pytest.raises(KeyboardInterrupt):
            parse.run(experiment, store)
    manifest = parse.run(experiment, store)
    count = shards(store, "train", "valid", "test")
    assert manifest["actor_core_seconds"] == count * TASK
    assert manifest["core_seconds"] == count * TASK + (count - done) * DRIVER  # the killed driver's are lost


@pytest.fixture
def finished(run_here: Path, tmp_path: Path) -> Store:
    """A run whose stages but the last have finished."""
    shutil.copytree(run_here, tmp_path / "copy")
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
    for stage, folder in FOLDERS.items():  # the metrics have those of every stage
        assert both[f"{stage}/core_seconds"] == finished.read_json(folder, "manifest.json")["core_seconds"]


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
    pilots = bank.PILOT
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
    returned.clear()
    monkeypatch.setattr(bank, "PILOT", pilots)
    monkeypatch.setattr(bank, "PILOT_IMAGES", 100)  # of large shards, here of 20 images, it is a few of them
    few = collect(tmp_path, max_patches=500)
    assert sum(len(found.drawn.patches) == found.drawn.seen for found in returned[:10]) == 6
    np.testing.assert_array_equal(few.patches, whole.patches)


def test_a_pilot_that_misleads_costs_a_second_look(
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
    assert (again.seen, again.images) == (whole.seen, whole.images)
