"""Any interleaving of drivers on one run folder leaves a run that resumes.

Drivers are simulated: their processes live in a table, their seconds in one clock, their files in a real
folder or in memory. Each step of a driver is one that the commands make, in their order.
"""

import json
import tempfile
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from npdraw_dist.config.schema import Experiment
from npdraw_dist.data.repeats import write_hashes
from npdraw_dist.data.shard_folder import ShardFacts, ShardFolder
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.lease import BEAT_S, DEAD_AFTER_S, Lease, LeaseHeld, LeaseLost
from npdraw_dist.system.process_table import Process, World
from npdraw_dist.system.storage import read_bytes, write_bytes, write_text
from tests.helpers.runs import tiny

SHARDS = ("train-0", "train-1", "test-0")
HOSTS = ("near", "far")
MADE_FROM = "abc"


def content(shard: str) -> bytes:
    return shard.encode() * 100


class State(Enum):
    WORKING = "working"
    SUSPENDED = "suspended"  # its process lives, but makes no step and no beat
    GONE = "gone"


@dataclass
class Driver:
    process: Process
    lease: Lease
    order: int  # number of drivers that had taken the lease by then
    unsaved: str | None = None  # a shard whose file is written, and whose sidecar is not
    state: State = State.WORKING


class Drivers(RuleBasedStateMachine):
    """At most one driver at a time writes, and what the last one finds is whole."""

    storage = "local"

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        where = self._folder.name if self.storage == "local" else f"memory://{uuid.uuid4().hex}"
        self.store = Store.open(where, "x")
        self.shards = ShardFolder(self.store.filesystem, self.store.path("parses"), MADE_FROM)
        self.experiment: Experiment = tiny()
        self.seconds = 0.0
        self.drivers: list[Driver] = []
        self.taken = 0
        self.processes = 0

    def teardown(self) -> None:
        self.resume_to_the_end()
        self._folder.cleanup()

    def working(self) -> list[Driver]:
        return [driver for driver in self.drivers if driver.state is State.WORKING]

    def living(self) -> list[Driver]:
        return [driver for driver in self.drivers if driver.state is not State.GONE]

    def last(self) -> list[Driver]:
        """The driver that took the lease last, if it lives."""
        return [driver for driver in self.living() if driver.order == self.taken]

    def pass_time(self, seconds: float) -> None:
        """Working drivers beat; a driver ends when it finds that another has taken its lease."""
        for _ in range(max(1, round(seconds / BEAT_S))):
            self.seconds += min(seconds, BEAT_S)
            for driver in self.working():
                try:
                    driver.lease.beat()
                except LeaseLost:
                    driver.state = State.GONE

    def world(self, process: Process) -> World:
        def is_running(other: Process) -> bool | None:
            if other.host != process.host:
                return None
            return any(driver.process == other for driver in self.living())

        return World(process, is_running, lambda: self.seconds, self.pass_time)

    def start(self, host: str) -> Driver | None:
        """A new driver that takes the lease; None if it was refused, which is then checked."""
        self.processes += 1
        process = Process(host, host, self.processes, 1)
        lease = Lease(self.store.filesystem, self.store.root, "run", world=self.world(process))
        try:
            lease.take()
        except LeaseHeld:
            assert any(d.state is State.WORKING or d.process.host == host for d in self.last())
            return None
        assert self.working() == []
        assert not any(driver.process.host == host for driver in self.last())
        self.taken += 1
        driver = Driver(process, lease, self.taken)
        self.drivers.append(driver)
        self.store.claim(self.experiment)
        self.shards.claim()
        return driver

    def may_write(self, driver: Driver) -> bool:
        """Checks the lease, as a command does before it writes. Only the last driver may write."""
        try:
            driver.lease.check()
        except LeaseLost:
            driver.state = State.GONE
            return False
        assert driver.order == self.taken
        return True

    @rule(host=st.sampled_from(HOSTS))
    def a_driver_starts(self, host: str) -> None:
        self.start(host)

    @precondition(lambda self: self.working())
    @rule(data=st.data(), shard=st.sampled_from(SHARDS))
    def a_shard_is_written(self, data: st.DataObject, shard: str) -> None:
        driver = data.draw(st.sampled_from(self.working()))
        if self.may_write(driver):
            write_bytes(self.store.filesystem, f"{self.shards.root}/{shard}.bin", content(shard))
            driver.unsaved = shard

    @precondition(lambda self: any(driver.unsaved for driver in self.working()))
    @rule(data=st.data())
    def its_sidecar_is_written(self, data: st.DataObject) -> None:
        driver = data.draw(st.sampled_from([driver for driver in self.working() if driver.unsaved]))
        if self.may_write(driver):
            self.write_sidecar(str(driver.unsaved))
            driver.unsaved = None

    @precondition(lambda self: self.working())
    @rule(data=st.data())
    def the_manifest_is_written(self, data: st.DataObject) -> None:
        driver = data.draw(st.sampled_from(self.working()))
        if self.may_write(driver) and set(self.shards.done()) == set(SHARDS):
            self.store.write_json({"writer": driver.order}, "parses", "manifest.json")

    @rule(seconds=st.sampled_from([1.0, BEAT_S, DEAD_AFTER_S / 2, 2 * DEAD_AFTER_S]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)

    @precondition(lambda self: self.living())
    @rule(data=st.data(), amid_a_write=st.booleans())
    def a_driver_is_killed(self, data: st.DataObject, amid_a_write: bool) -> None:
        driver = data.draw(st.sampled_from(self.living()))
        if amid_a_write and driver.state is State.WORKING and self.may_write(driver):
            write_bytes(self.store.filesystem, f"{self.shards.root}/train-0.bin.{driver.order}.part", b"0")
        driver.state = State.GONE

    @precondition(lambda self: self.working())
    @rule(data=st.data())
    def a_driver_is_suspended(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.working())).state = State.SUSPENDED

    @precondition(lambda self: any(driver.state is State.SUSPENDED for driver in self.drivers))
    @rule(data=st.data(), writes_first=st.booleans())
    def a_driver_comes_back(self, data: st.DataObject, writes_first: bool) -> None:
        """Its next step can come before its next beat."""
        asleep = [driver for driver in self.drivers if driver.state is State.SUSPENDED]
        driver = data.draw(st.sampled_from(asleep))
        driver.state = State.WORKING
        if writes_first:
            self.may_write(driver)
        else:
            self.pass_time(BEAT_S)

    @precondition(lambda self: self.working())
    @rule(data=st.data())
    def a_driver_ends(self, data: st.DataObject) -> None:
        driver = data.draw(st.sampled_from(self.working()))
        driver.lease.release()
        driver.state = State.GONE

    def write_sidecar(self, shard: str) -> None:
        facts = ShardFacts(shard, "train", f"{shard}.bin", 1, len(content(shard)), 0.0, 0.0)
        write_hashes(self.store.filesystem, f"{self.shards.root}/.done/{shard}.ids", [shard])
        text = json.dumps([vars(facts)])
        write_text(self.store.filesystem, f"{self.shards.root}/.done/{shard}.json", text)

    def resume_to_the_end(self) -> None:
        """With all killed, one command more takes the run and finds only whole files, of the right config."""
        for driver in self.drivers:
            driver.state = State.GONE
        last = self.start(HOSTS[0])
        assert last is not None
        assert self.store.config() == self.experiment
        done = self.shards.done()
        for shard in done:
            assert read_bytes(self.store.filesystem, f"{self.shards.root}/{shard}.bin") == content(shard)
        if self.store.has("parses", "manifest.json"):
            assert set(done) == set(SHARDS)
        assert not list(Path(self._folder.name).rglob("*.part"))
        last.lease.release()


class DriversInAnObjectStore(Drivers):
    storage = "memory"


TestDriversOnAFilesystem = pytest.mark.slow(Drivers.TestCase)
TestDriversInAnObjectStore = DriversInAnObjectStore.TestCase
each = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=True)
TestDriversOnAFilesystem.settings = TestDriversInAnObjectStore.settings = each
