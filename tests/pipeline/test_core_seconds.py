"""CPU seconds of the stages without a training loop, by a clock that the test moves. Without Ray."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npdraw_dist import train
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.data import shard_writer
from npdraw_dist.data.repeats import hash_of
from npdraw_dist.data.shard_writer import Encoded
from npdraw_dist.pipeline import bank, parse, sample
from npdraw_dist.pipeline.inputs import claim
from npdraw_dist.pipeline.parse import ParseEncoder
from npdraw_dist.pipeline.scores import score
from npdraw_dist.pipeline.store import Store
from tests.helpers.image_files import SIDE, images
from tests.helpers.in_process import killed, map_here
from tests.helpers.runs import HERE, TINY

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
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path), "run")


@pytest.fixture
def experiment(tmp_path: Path, store: Store) -> Experiment:
    """Of 40 images: 4 shards of training, and one each of validation and test."""
    data = {"source": "imagefolder", "path": str(images(tmp_path / "data", 40)), "shard_rows": 8}
    settings = {
        "data": {**data, "image_size": SIDE, "channels": 1},
        "grid": {"patch": 4, "stride": 4},
        "bank": {"size": 3},
        "scale": {"use_gpu": False},
    }
    return claim(Experiment.model_validate(settings), store)[0]


def shards(store: Store, *splits: str) -> int:
    return sum(len(list(Path(store.path("parses", split)).glob("*.parquet"))) for split in splits)


@pytest.mark.usefixtures("clock")
def test_the_bank_counts_its_tasks_and_the_driver(experiment: Experiment, store: Store) -> None:
    manifest = bank.run(experiment, store)
    parse.run(experiment, store)
    assert manifest["core_seconds"] == shards(store, "train") * (TASK + DRIVER) > 0


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
def test_the_bank_counts_the_actors_that_share_its_patches(
    experiment: Experiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = bank.build_bank
    actors_s = 100.0

    def shared(*args: Any) -> Any:
        parts, facts = build(*args)
        return parts, replace(facts, actor_core_seconds=actors_s)

    monkeypatch.setattr(bank, "build_bank", shared)
    manifest = bank.run(experiment, store)
    parse.run(experiment, store)
    assert manifest["core_seconds"] == actors_s + shards(store, "train") * (TASK + DRIVER)


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


@pytest.mark.usefixtures("clock")
def test_a_later_split_adds_to_the_parse(experiment: Experiment, store: Store) -> None:
    bank.run(experiment, store)
    valid = with_changes(experiment, {"eval": {"split": "valid"}})
    first = parse.run(valid, store)
    assert first["core_seconds"] == shards(store, "train", "valid") * (TASK + DRIVER)
    both = parse.run(experiment, store)
    count = shards(store, "train", "valid", "test")
    assert both["core_seconds"] == count * (TASK + DRIVER) > first["core_seconds"]


def test_ids_that_repeat_are_written_twice_and_both_count(clock: Clock, tmp_path: Path) -> None:
    from tests.data.test_shard_writer import LOCAL, IdEncoder, shard_of

    folder = shard_writer.ShardFolder(LOCAL, str(tmp_path), "abc")
    folder.claim()
    encode = clock.spending(TASK, IdEncoder())
    writer = shard_writer.ShardWriter(folder, encode)  # type: ignore[arg-type]
    facts = writer(shard_of(("a", "b")))
    again = replace(writer, repeated={"train-00000": {hash_of("b")}}, spent={"train-00000": TASK})
    assert (facts.core_seconds, again(shard_of(("a", "b"))).core_seconds) == (TASK, 2 * TASK)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a baseline."""
    storage = tmp_path_factory.mktemp("runs")
    kind = ["--model.kind", "vae", "--baseline.width", "16", "--baseline.depth", "0"]
    train.main(["--storage", str(storage), "--name", "run", *TINY, *HERE, *kind])
    return storage / "run"


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Store:
    """A run whose stages but the last have finished."""
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy" / "metrics.json").unlink()
    return Store.open(str(tmp_path), "copy")


def test_samples_and_both_splits_scores_count(
    finished: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "score", clock.spending(SCORES, score))
    asked = finished.config()
    first = sample.run(with_changes(asked, {"eval": {"split": "valid"}}), finished)
    assert first["sample/core_seconds"] == SCORES
    both = sample.run(with_changes(asked, {"eval": {"split": "test"}}), finished)
    assert both["sample/core_seconds"] == 2 * SCORES
    assert both["sample/seconds"] >= first["sample/seconds"]
    assert {"valid/nll_iwae", "test/nll_iwae"} <= both.keys()


@pytest.mark.usefixtures("clock")
def test_the_metrics_have_those_of_every_stage(finished: Store) -> None:
    for number, folder in enumerate(("parses", "vae"), 1):
        manifest = finished.read_json(folder, "manifest.json")
        finished.write_json({**manifest, "core_seconds": float(number)}, folder, "manifest.json")
    metrics = sample.run(finished.config(), finished)
    found = {key: value for key, value in metrics.items() if key.endswith("core_seconds")}
    assert found == {"parse/core_seconds": 1.0, "vae/core_seconds": 2.0, "sample/core_seconds": 0.0}
