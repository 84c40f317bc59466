"""Stages that trials share are built once each, also when several want one at once or a builder dies."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray
from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import Lease
from npdraw_dist.pipeline.store import FOLDERS, Store, fingerprint_of, required
from npdraw_dist.training.cluster import start_bookkeeper
from tests.helpers.spaces import load_space
from tests.helpers.waiting import until
from tune_spaces import shared_stages
from tune_spaces.shared_stages import SHARED, Leases, SharedStage, trial_store


class Handle:
    """A `Leases` actor without Ray: one call at a time, results at once."""

    def __init__(self, leases: Leases) -> None:
        self.leases, self.lock = leases, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Any:
            with self.lock:
                return getattr(self.leases, name)(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Handle:
    monkeypatch.setattr(shared_stages.ray, "get", lambda value: value)
    monkeypatch.setattr(shared_stages, "POLL_S", 0.005)
    return Handle(Leases(str(tmp_path / "notes.json")))


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
            required(store, experiment, before, stage)
        name = f"{stage}-{fingerprint_of(experiment, stage)}"
        assert name not in self.at_work
        self.at_work.add(name)
        time.sleep(0.02)
        self.built[name] += 1
        store.write_json({"fingerprint": fingerprint_of(experiment, stage)}, FOLDERS[stage], "manifest.json")
        self.at_work.remove(name)


def want(run: Store, experiment: Experiment, trial: str, leases: Handle, build: Builder) -> Store:
    for stage in SHARED:
        shared = SharedStage(run, experiment, stage)
        shared.ensure(trial, leases, partial(build, experiment, stage))
    return trial_store(run, experiment, trial)


def test_twelve_trials_build_each_bank_parse_and_prior_once(run: Store, leases: Handle) -> None:
    trials, build = structure(12), Builder()
    with ThreadPoolExecutor(6) as pool:
        numbered = list(enumerate(trials))
        stores = list(pool.map(lambda item: want(run, item[1], f"t{item[0]}", leases, build), numbered))
    expected = {f"{stage}-{fingerprint_of(trial, stage)}" for trial in trials for stage in SHARED}
    assert build.built == Counter(dict.fromkeys(expected, 1))
    for trial, store in zip(trials, stores, strict=True):
        for stage in SHARED:
            required(store, trial, stage, "vae")
    # Again, as after a restart: nothing is built.
    want(run, trials[0], "again", leases, build)
    assert set(build.built.values()) == {1}


def test_many_that_want_the_same_at_once_wait_for_one(run: Store, leases: Handle) -> None:
    trial, build = structure(1)[0], Builder()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: want(run, trial, f"t{n}", leases, build), range(8)))
    assert sorted(name.partition("-")[0] for name in build.built) == sorted(SHARED)
    assert set(build.built.values()) == {1}


def test_a_builder_that_fails_leaves_it_to_the_next(run: Store, leases: Handle) -> None:
    trial, build = structure(1)[0], Builder()

    def fail(store: Store) -> None:
        raise UserError("no data")

    with pytest.raises(UserError, match="no data"):
        SharedStage(run, trial, "bank").ensure("first", leases, fail)
    want(run, trial, "second", leases, build)
    assert len(build.built) == 3


def test_the_notes_of_who_builds(tmp_path: Path) -> None:
    leases = Leases(str(tmp_path / "notes.json"))
    assert leases.acquire("bank-1", "dead")
    assert leases.acquire("bank-1", "dead")
    assert not leases.acquire("bank-1", "other")
    leases.release("bank-1", "other")  # not its own
    assert not leases.acquire("bank-1", "other")
    leases.release_all("dead")
    assert leases.acquire("bank-1", "other")
    assert not leases.acquire("bank-1", "third")


def test_what_is_left_of_a_stopped_trial_gets_nothing(tmp_path: Path) -> None:
    """Its driver function can go on to the next stage before it ends, and nobody would free that."""
    leases = Leases(str(tmp_path / "notes.json"))
    leases.release_all("dead")
    assert not leases.acquire("parse-1", "dead")
    assert leases.acquire("parse-1", "other")


def test_notes_are_read_again(tmp_path: Path) -> None:
    def again() -> Leases:
        return Leases(str(tmp_path / "notes.json"))

    again().release_all("dead")
    assert again().acquire("bank-1", "builder")
    assert not again().acquire("bank-1", "other")
    assert not again().acquire("bank-2", "dead")
    assert again().acquire("bank-1", "builder")  # a call that is repeated
    again().release("bank-1", "builder")
    assert again().acquire("bank-1", "other")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_actor_keeps_its_notes_when_its_process_dies(tmp_path: Path) -> None:
    leases = start_bookkeeper(Leases, str(tmp_path / "notes.json"))

    def process() -> int:
        return ray.get(leases.__ray_call__.remote(lambda _: os.getpid()))

    assert ray.get(leases.acquire.remote("bank-1", "builder"))
    first = process()
    ray.kill(leases, no_restart=False)
    until(lambda: process() != first)  # until it has ended, it may still answer
    assert not ray.get(leases.acquire.remote("bank-1", "other"))
    assert ray.get(leases.acquire.remote("bank-1", "builder"))
    ray.kill(leases)


def test_a_build_waits_for_the_end_of_the_process_that_built_before(run: Store) -> None:
    code = (
        "import sys, time; from pyarrow import fs; from npdraw_dist.core.lease import Lease\n"
        "with Lease(fs.LocalFileSystem(), sys.argv[1], 'bank'): print('taken', flush=True); time.sleep(60)"
    )
    store, started, done = SharedStage(run, structure(1)[0], "bank").store, threading.Event(), []
    before = subprocess.Popen([sys.executable, "-c", code, store.root], stdout=subprocess.PIPE)

    def build(experiment: Experiment, store: Store) -> None:
        done.append(time.monotonic())

    def wait() -> None:
        started.set()
        shared_stages.build_alone(build, structure(1)[0], store)

    thread = threading.Thread(target=wait)
    try:
        assert before.stdout is not None
        assert before.stdout.readline() == b"taken\n"
        thread.start()
        started.wait(60)
        thread.join(2)  # it does not end
        assert done == []
    finally:
        killed = time.monotonic()
        before.kill()
        before.wait()
    thread.join(60)
    assert len(done) == 1
    assert done[0] > killed


def test_a_build_does_not_wait_for_ever(run: Store) -> None:
    store, trial = SharedStage(run, structure(1)[0], "bank").store, structure(1)[0]
    impatient = trial.model_copy(update={"scale": trial.scale.model_copy(update={"timeout_s": 1})})
    with (
        Lease(store.filesystem, store.root, "bank"),
        pytest.raises(UserError, match=rf"the build in {store.root} is in use by process {os.getpid()} on "),
    ):
        shared_stages.build_alone(lambda experiment, store: None, impatient, store)


def test_a_trial_reads_shared_stages_from_the_cache_and_writes_its_own(run: Store) -> None:
    trial = structure(1)[0]
    store = trial_store(run, trial, "t0")
    bank = SharedStage(run, trial, "bank").store
    assert store.path("bank", "bank.png") == bank.path("bank", "bank.png")
    assert bank.root == run.path("cache", f"bank-{fingerprint_of(trial, 'bank')}")
    assert store.path("parses", "test").startswith(run.path("cache", "parse-"))
    for own in ("vae", "model", "config.yaml", "metrics.json"):
        assert store.path(own) == run.path("trials", "t0", own)
    assert store.path() == run.path("trials", "t0")
