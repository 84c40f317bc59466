"""Stages that trials share are built once each, also when several want one at once or a builder dies."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline.store import FOLDERS, Store, fingerprint_of, required
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import Lease
from tests.helpers.spaces import load_space
from tune_spaces import shared_stages
from tune_spaces.shared_stages import SHARED, Cache, SharedStage


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_stages, "POLL_S", 0.005)


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(fs.LocalFileSystem(), str(tmp_path / "sweep"))


def structure(count: int) -> list[Experiment]:
    space = load_space("structure")
    return [space.experiment(space.base("digits"), point) for point in islice(space.points(0), count)]


class Builder:
    """Builds a stage slowly: its manifest only. Counts, and refuses to start without its input."""

    def __init__(self) -> None:
        self.built: Counter[str] = Counter()
        self.at_work: set[str] = set()

    def __call__(self, experiment: Experiment, stage: str, store: Store) -> None:
        for before in SHARED[: SHARED.index(stage)]:
            required(store, experiment, before)
        name = f"{stage}-{fingerprint_of(experiment, stage)}"
        assert name not in self.at_work
        self.at_work.add(name)
        time.sleep(0.02)
        self.built[name] += 1
        store.write_json({"fingerprint": fingerprint_of(experiment, stage)}, FOLDERS[stage], "manifest.json")
        self.at_work.remove(name)


def want(run: Store, experiment: Experiment, build: Builder) -> Store:
    for stage in SHARED:
        SharedStage(Cache(run), experiment, stage).ensure(partial(build, experiment, stage))
    return Cache(run).trial_store(experiment, fingerprint_of(experiment, "sample"))


def test_twelve_trials_build_each_shared_stage_once(run: Store) -> None:
    trials, build = structure(12), Builder()
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda trial: want(run, trial, build), trials))
    expected = {f"{stage}-{fingerprint_of(trial, stage)}" for trial in trials for stage in SHARED}
    assert build.built == Counter(dict.fromkeys(expected, 1))
    for trial, store in zip(trials, stores, strict=True):
        for stage in SHARED:
            required(store, trial, stage)
    # Again, as after a restart: nothing is built.
    want(run, trials[0], build)
    assert set(build.built.values()) == {1}


def test_a_builder_that_fails_leaves_it_to_the_next(run: Store) -> None:
    trial, build = structure(1)[0], Builder()

    def fail(store: Store) -> None:
        raise UserError("no data")

    with pytest.raises(UserError, match="no data"):
        SharedStage(Cache(run), trial, "bank").ensure(fail)
    want(run, trial, build)
    assert len(build.built) == len(SHARED)


def test_a_build_waits_for_the_one_before_but_not_for_ever(run: Store) -> None:
    trial = structure(1)[0]
    store, done = SharedStage(Cache(run), trial, "bank").store, list[Store]()
    impatient = trial.model_copy(update={"scale": trial.scale.model_copy(update={"timeout_s": 1})})

    def build(experiment: Experiment, store: Store) -> None:
        done.append(store)

    with Lease(store.filesystem, store.root, "bank"):
        with pytest.raises(UserError, match=rf"the build in {store.root} is in use by process"):
            shared_stages.build_alone(build, impatient, store)
        thread = threading.Thread(target=shared_stages.build_alone, args=(build, trial, store))
        thread.start()
        thread.join(0.3)  # it does not end
        assert done == []
    thread.join(60)
    assert done == [store]


def test_where_the_path_varies_a_stage_is_of_one_path(run: Store) -> None:
    trial = structure(1)[0]
    other = trial.model_copy(update={"data": trial.data.model_copy(update={"path": "elsewhere"})})
    assert SharedStage(Cache(run), trial, "data").name == SharedStage(Cache(run), other, "data").name
    names = {SharedStage(Cache(run, True), each, "data").name for each in (trial, other)}
    assert len(names) == 2
