"""A lease has one living owner. Another process can follow a dead owner; an owner that was followed stops."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from pyarrow import fs

from npdraw_dist.system import lease as leases
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import BEAT_S, DEAD_AFTER_S, Holder, Lease, LeaseError, LeaseLost, living
from npdraw_dist.system.process_table import Process, World, is_running, process_of, this_process

LOCAL = fs.LocalFileSystem()


@dataclass
class Time:
    """A clock that only `sleep` moves; each sleep calls `meanwhile`."""

    seconds: float = 0.0
    meanwhile: Callable[[], None] = field(default=lambda: None)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.meanwhile()

    def now(self) -> float:
        return self.seconds


def elsewhere(time: Time, host: str = "far") -> World:
    """A process on a machine whose processes nobody else can see."""
    return World(Process(host, host, 7, 1), lambda process: None, time.now, time.sleep)


def make(folder: Path, world: World | None = None, wait_s: float = 0.0, group: str = "") -> Lease:
    return Lease(LOCAL, str(folder), "run x", wait_s=wait_s, group=group, world=world)


def near(time: Time) -> World:
    """This process with this clock."""
    return World(this_process(), now=time.now, sleep=time.sleep)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".lease").iterdir())


def of(process: subprocess.Popen[bytes]) -> World:
    """The world of a lease that `process` takes."""
    return World(process_of(process.pid))


def test_an_owner_that_lives_is_named_in_one_line(tmp_path: Path, sleeping: subprocess.Popen[bytes]) -> None:
    time = Time()
    first = make(tmp_path, World(of(sleeping).process, now=time.now, sleep=time.sleep))
    first.take()
    for seconds, age in ((0, "0 s"), (100, "100 s"), (9900, r"2\.8 h")):
        time.seconds = seconds
        first.beat()
        with pytest.raises(UserError, match=f"run x .* {sleeping.pid} on {this_process().host}, .* {age}"):
            make(tmp_path).take()


@pytest.mark.parametrize("reaped", [True, False])
def test_an_owner_that_was_killed_is_followed_at_once(
    tmp_path: Path, sleeping: subprocess.Popen[bytes], reaped: bool
) -> None:
    make(tmp_path, of(sleeping)).take()
    sleeping.kill()
    os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    if reaped:
        sleeping.wait()
    no_wait = Mock(side_effect=AssertionError)
    second = make(tmp_path, World(this_process(), sleep=no_wait))
    second.take()
    assert second.generation == 2
    assert files(tmp_path) == ["00000002.json"]


def test_who_runs() -> None:
    mine = this_process()
    assert is_running(mine) is True
    assert is_running(replace(mine, host="another-name-of-it")) is True
    assert is_running(replace(mine, start=1)) is False  # its number was given again
    assert is_running(replace(mine, pid=2**22 + 5)) is False  # above the kernel's highest
    assert is_running(replace(mine, boot="of another machine")) is None
    assert is_running(replace(mine, boot="")) is None


def test_a_released_lease_is_taken_again_and_only_the_newest_file_is_kept(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        with make(tmp_path) as lease:
            lease.check()
            assert lease.generation == generation
        assert files(tmp_path) == [f"0000000{generation}.json"]
        assert json.loads((tmp_path / ".lease" / f"0000000{generation}.json").read_text())["released"]
    with pytest.raises(ValueError, match="mine"), make(tmp_path):
        raise ValueError("mine")
    make(tmp_path).take()


def test_an_owner_elsewhere_that_beats_is_refused_at_its_next_beat(tmp_path: Path) -> None:
    time = Time()
    first = make(tmp_path, elsewhere(time))
    first.take()
    time.meanwhile = first.beat
    with pytest.raises(UserError, match="process 7 on far"):
        make(tmp_path, elsewhere(time, "near")).take()
    assert time.seconds < DEAD_AFTER_S / 2


@pytest.mark.parametrize("look", ["beat", "check"])
@pytest.mark.parametrize("released", [False, True])
def test_an_owner_elsewhere_that_is_silent_is_followed_and_stops(
    tmp_path: Path, look: str, released: bool
) -> None:
    time = Time()
    first = make(tmp_path, elsewhere(time))
    first.take()
    first.check()
    second = make(tmp_path, elsewhere(time, "near"))
    second.take()
    assert DEAD_AFTER_S <= time.seconds < DEAD_AFTER_S + 5
    if released:
        second.release()
    with pytest.raises(LeaseLost, match="taken over by process 7 on near"):
        getattr(first, look)()
    first.release()  # changes nothing
    if not released:
        second.beat()
        second.check()


def test_owners_that_beat_or_run_are_at_work(tmp_path: Path, sleeping: subprocess.Popen[bytes]) -> None:
    """Of several owners on other machines, all are waited for at once."""
    time = Time()
    folders = {name: tmp_path / name for name in ("beats", "silent", "here", "killed", "released", "none")}
    beats, silent = (make(folders[name], elsewhere(time)) for name in ("beats", "silent"))
    here, killed = make(folders["here"], near(time)), make(folders["killed"], of(sleeping))
    released = make(folders["released"], elsewhere(time))
    for lease in (beats, silent, here, killed, released):
        lease.take()
    sleeping.kill()
    sleeping.wait()
    released.release()
    time.meanwhile = beats.beat
    found = living(LOCAL, [str(folder) for folder in folders.values()], near(time))
    assert dict(zip(folders, [at_work for _, at_work in found], strict=True)) == {
        **dict.fromkeys(folders, False),
        **{"beats": True, "here": True},
    }
    assert [holder is None for holder, _ in found] == [False] * 5 + [True]
    assert BEAT_S * 2 < time.seconds < DEAD_AFTER_S / 2


def test_waiting_for_an_owner_that_ends(tmp_path: Path) -> None:
    time = Time()
    first, second = make(tmp_path, near(time)), make(tmp_path, near(time), wait_s=100)
    first.take()
    time.meanwhile = lambda: first.release() if time.seconds > 50 else first.beat()
    second.take()
    assert 50 < time.seconds < 55
    time.meanwhile = lambda: None
    with pytest.raises(UserError, match="in use by"):
        make(tmp_path, near(time), wait_s=100).take()
    assert time.seconds > 150


def test_a_process_of_the_same_group_follows_without_a_wait(tmp_path: Path) -> None:
    time = Time()
    first = make(tmp_path, elsewhere(time), group="attempt")
    first.take()
    make(tmp_path, elsewhere(time, "near"), group="attempt").take()
    assert time.seconds == 0
    with pytest.raises(LeaseLost):
        first.beat()


def test_an_unreadable_lease_is_followed_when_nothing_changes_it(tmp_path: Path) -> None:
    (tmp_path / ".lease").mkdir()
    (tmp_path / ".lease" / "00000004.json").write_text('{"owner": ')
    time = Time()
    lease = make(tmp_path, elsewhere(time))
    lease.take()
    assert lease.generation == 5
    assert time.seconds >= DEAD_AFTER_S


def test_a_folder_that_is_removed_while_it_is_listed_has_no_owner(tmp_path: Path) -> None:
    """Another owner that ends may remove it."""
    folder = tmp_path / "a"

    class Removing:
        """Lists the folder as pyarrow does: looks first, then reads."""

        left = 1

        def __getattr__(self, name: str) -> object:
            return getattr(LOCAL, name)

        def get_file_info(self, of: object) -> object:
            if isinstance(of, fs.FileSelector) and self.left:
                self.left = 0
                raise FileNotFoundError(of.base_dir)
            return LOCAL.get_file_info(of)

    with Lease(Removing(), str(folder), "a") as lease:  # type: ignore[arg-type]
        assert lease.generation == 1


def test_a_folder_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lease = make(folder)
    lease.take()
    LOCAL.delete_dir(str(folder))
    lease.beat()
    lease.check()
    lease.release()
    assert not folder.exists()
    second = make(folder)  # of a run that somebody started there since
    second.take()
    with pytest.raises(LeaseLost):
        lease.beat()
    second.beat()


@pytest.mark.usefixtures("interruptible")
def test_the_main_thread_is_interrupted_when_the_lease_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.02)
    waited = []

    def work(first: Lease) -> None:
        second = make(tmp_path, replace(first.world, is_running=lambda process: False))
        second.take()
        waited.append(second)
        threading.Event().wait(60)
        waited.append(second)  # not reached

    with pytest.raises(LeaseLost, match="taken over"), make(tmp_path) as first:
        work(first)
    (second,) = waited
    second.beat()


def test_the_beat_goes_on_while_the_block_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    third, beat = threading.Event(), Lease.beat

    def counted(self: Lease) -> None:
        beat(self)
        if Holder.read((tmp_path / ".lease" / "00000001.json").read_text()).beat >= 3:
            third.set()

    monkeypatch.setattr(Lease, "beat", counted)
    with make(tmp_path):
        assert third.wait(60)
    assert Holder.read((tmp_path / ".lease" / "00000001.json").read_text()).released


def test_two_commands_in_two_processes(tmp_path: Path) -> None:
    """The second is refused while the first lives, also when it is suspended, and not after its kill."""
    code = (
        "import sys, time; from pyarrow import fs; from npdraw_dist.system.lease import Lease\n"
        "with Lease(fs.LocalFileSystem(), sys.argv[1], 'run x'): print('taken', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"taken\n"
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match=f"process {first.pid} on "):
            make(tmp_path).take()
    finally:
        first.kill()
        first.wait()
    make(tmp_path).take()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, *arguments: object, **options: object) -> object:
        return open("/dev/full", "w")  # the caller closes it

    monkeypatch.setattr(leases, "open", full, raising=False)
    with pytest.raises(LeaseError, match=r"cannot write to run x: .*No space left"), make(tmp_path):
        pass
    assert files(tmp_path) == []
