"""A lease on a folder, which permits one writer at a time and ends with the process that holds it.

A lease is the file <folder>/.lease/<generation, 8 digits>.json. If the highest generation is released or its
owner is dead, a process takes the lease by creating the next generation, which only one process can do. The
highest generation is never deleted, so an owner that was suspended and replaced finds a higher one and stops.

The process table shows whether an owner on this machine is dead. An owner on another machine counts as
dead if its beat counter does not change for DEAD_AFTER_S seconds on the observer's own clock. The
clocks of two machines are never compared.

A local or network filesystem creates a new file atomically (NFS too). An object store only guarantees that a
written file appears in every later listing (pyarrow offers no conditional writes). So each process
first writes an announcement, then lists the folder. Of two processes, at least one sees the announcement of
the other, and the process with the lower name wins.
"""

import contextlib
import json
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process_table import Process, World, this_process
from npdraw_dist.system.storage import PARTIAL, impatient, in_threads, read_bytes, write_text

LEASE_FOLDER = ".lease"
BEAT_S = 5.0  # seconds between an owner's beats
DEAD_AFTER_S = 30.0  # seconds without a new beat after which an owner on another machine counts as dead
LOOK_S = 2.5 * BEAT_S  # time in which `living` looks for a beat of an owner on another machine
POLL_S = 1.0  # interval at which the lease of another owner is read
ABANDONED_AFTER_S = 30.0  # an announcement that exists for longer counts as left by a dead process
ANNOUNCED_POLL_S = 0.2


def is_lease(path: str) -> bool:
    """Whether the file `path` is part of a lease, not of the content of the folder that it protects."""
    return f"/{LEASE_FOLDER}/" in path


@dataclass(frozen=True)
class Holder:
    """The content of a lease. age_s: seconds from the start of the lease to the last beat.

    group: a process takes over the lease of another process of its group without waiting, since each process
    of a group is started only after the previous one has ended.
    """

    owner: str
    process: Process
    group: str = ""
    beat: int = 0
    age_s: float = 0.0
    released: bool = False

    @classmethod
    def read(cls, text: str) -> "Holder":
        """Parses `text`. Unreadable text is a remote owner, which counts as alive while the text changes."""
        try:
            values = json.loads(text)
            return cls(**{**values, "process": Process(**values["process"])})
        except (ValueError, TypeError, KeyError):
            return cls(f"unreadable {text}", Process("unknown", "", 0, 0))

    def text(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    def __str__(self) -> str:
        minutes = self.age_s / 60
        age = f"{self.age_s:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
        age = age if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"process {self.process.pid} on {self.process.host}, at work for {age}"


class LeaseError(UserError):
    """The lease cannot be taken, or was taken over."""


class LeaseHeld(LeaseError):
    """A living process has the lease."""


class LeaseLost(LeaseError):
    """Another process has taken over the lease, so this one must write nothing more."""


class Lease:
    """The lease on `folder` as a context manager. what: the name of the protected data in messages.

    wait_s: seconds to wait for the end of a living owner. group: as in `Holder`. In the block, a thread
    writes the beats. If another process takes over the lease, this thread interrupts the main thread, and the
    block ends in LeaseLost. Entering raises LeaseHeld if another owner lives, and LeaseError if the storage
    fails.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        folder: str,
        what: str,
        *,
        wait_s: float = 0.0,
        group: str = "",
        world: World | None = None,
    ) -> None:
        # Long pauses between retries would delay the beats; `_keep` repeats a beat that fails.
        self.filesystem, self.folder, self.what = impatient(filesystem), f"{folder}/{LEASE_FOLDER}", what
        self.wait_s, self.world = wait_s, world or World(this_process())
        self.own = Holder(uuid.uuid4().hex, self.world.process, group)
        self.generation = 0  # 0 until the lease is taken
        self._taken = self._renewed = 0.0  # readings of `world.now`
        self._rivals: dict[str, float] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: LeaseLost | None = None

    def __enter__(self) -> Self:
        try:
            self.take()
        except (OSError, pa.ArrowException) as error:
            raise LeaseError(f"cannot write to {self.what}: {error}") from error
        interrupt = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._keep, args=(interrupt,), name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        with contextlib.suppress(KeyboardInterrupt):  # from the signal that `_keep` sends
            self._thread.join(BEAT_S)
        if self._lost is not None:
            raise self._lost from None
        if not self._thread.is_alive():  # else it waits for the storage, with the lock that `release` needs
            with contextlib.suppress(OSError, pa.ArrowException):
                self.release()

    def take(self) -> None:
        """Takes the lease. Raises LeaseHeld if another owner still lives after `wait_s` seconds."""
        seen: tuple[str, int] | None = None  # owner and beat at the last poll
        since = started = self.world.now()  # since: when `seen` was first read
        while True:
            generation, holder = highest(self.filesystem, self.folder)
            now, running = self.world.now(), self._runs(holder)
            pulse = None if holder is None else (holder.owner, holder.beat)
            still = pulse == seen
            if running is False or (running is None and still and now - since >= DEAD_AFTER_S):
                if self._create(generation + 1):
                    return
            elif (running or (seen and not still)) and now - started >= self.wait_s:
                raise LeaseHeld(f"{self.what} is in use by {holder}; wait for its end or stop it")
            elif not still:
                if seen is None and running is None:
                    line = f"waiting up to {DEAD_AFTER_S:.0f} s for a sign of life of {holder}"
                    print(line, file=sys.stderr)
                seen, since = pulse, now
            self.world.sleep(POLL_S)

    def _runs(self, holder: Holder | None) -> bool | None:
        """Whether the owner lives; None if only its beats can show it."""
        if holder is None or holder.released or (holder.group and holder.group == self.own.group):
            return False
        return self.world.is_running(holder.process)

    def _create(self, generation: int) -> bool:
        """Creates the lease of this generation. Returns whether it did and no higher generation exists."""
        path, text = self._path(generation), self.own.text()
        if not create_exclusively(self.filesystem, path, text, self.own.owner, self._rivals, self.world):
            return False
        found = _generations(self.filesystem, self.folder)
        ours = found[-1:] == [generation]  # if not, another process had created and removed this generation
        for old in found[:-1] if ours else [generation]:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self._path(old))
        if ours:
            self.generation, self._taken = generation, self.world.now()
            self._renewed = self._taken
        return ours

    def beat(self) -> None:
        """Writes the next beat. Raises LeaseLost if the lease was taken over."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            generation, holder = highest(self.filesystem, self.folder)
            if holder is None:
                return  # the folder was removed, and a beat must not create it again
            if generation > self.generation or holder.owner != self.own.owner:
                self._lost = LeaseLost(
                    f"{self.what} was taken over by {holder}, since process {self.own.process.pid} on "
                    f"{self.own.process.host} had been silent for too long; it stops"
                )
                raise self._lost
            age = self.world.now() - self._taken
            self._write(beat=self.own.beat + 1, age_s=round(age, 1))
            self._renewed = self.world.now()

    def check(self) -> None:
        """Raises LeaseLost if the lease was taken over. Writes a beat first if the last one was long ago."""
        if self._lost is not None:
            raise self._lost
        if self.world.now() - self._renewed > DEAD_AFTER_S / 2:
            with contextlib.suppress(
                OSError, pa.ArrowException
            ):  # the storage fails, so the caller cannot write either
                self.beat()

    def release(self) -> None:
        """Marks the lease as free if this process still has it."""
        with self._lock:
            generation, holder = highest(self.filesystem, self.folder)
            if generation == self.generation and holder is not None and holder.owner == self.own.owner:
                self._write(released=True)

    def _keep(self, interrupt: bool) -> None:
        """Writes a beat every BEAT_S seconds until the block ends or the lease is lost."""
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except LeaseLost:
                if interrupt:  # the signal of Ctrl-C also ends a blocking wait
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            except (OSError, pa.ArrowException):
                continue  # the storage fails; the next beat will find out if the lease was taken over

    def _write(self, **changes: Any) -> None:
        self.own = replace(self.own, **changes)
        write_text(self.filesystem, self._path(self.generation), self.own.text())

    def _path(self, generation: int) -> str:
        return f"{self.folder}/{generation:08d}.json"


def living(
    filesystem: fs.FileSystem, folders: Sequence[str], world: World | None = None
) -> list[tuple[Holder | None, bool]]:
    """For each of `folders`, the last owner of its lease, and whether this owner is at work.

    If only beats can show it for some owner, all are read again after LOOK_S seconds.
    """
    hasty, world = impatient(filesystem), world or World(this_process())

    def read(folder: str) -> Holder | None:
        return highest(hasty, f"{folder}/{LEASE_FOLDER}")[1]

    before = in_threads(read, folders)
    alive = [one is not None and not one.released and world.is_running(one.process) for one in before]
    if count := alive.count(None):
        print(
            f"watching {LOOK_S:.0f} s whether {count} processes on other machines are alive", file=sys.stderr
        )
        world.sleep(LOOK_S)
        after = in_threads(read, folders)
        changed = [old != new for old, new in zip(before, after, strict=True)]
        alive = [moved if one is None else one for one, moved in zip(alive, changed, strict=True)]
    return [(one, bool(lives)) for one, lives in zip(before, alive, strict=True)]


def highest(filesystem: fs.FileSystem, folder: str) -> tuple[int, Holder | None]:
    """The highest generation in a lease's `folder`, and its content; (0, None) if there is none."""
    while found := _generations(filesystem, folder):
        with contextlib.suppress(FileNotFoundError):  # another process replaced it meanwhile
            content = read_bytes(filesystem, f"{folder}/{found[-1]:08d}.json")
            return found[-1], Holder.read(content.decode(errors="replace"))
    return 0, None


def _generations(filesystem: fs.FileSystem, folder: str) -> list[int]:
    """All existing generations, lowest first."""
    try:
        found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except FileNotFoundError:  # the folder was removed while pyarrow listed it
        return []
    names = [info.base_name.partition(".") for info in found if info.type == fs.FileType.File]
    return sorted(int(stem) for stem, _, suffix in names if stem.isdigit() and suffix == "json")


def create_exclusively(
    filesystem: fs.FileSystem, path: str, text: str, own: str, seen: dict[str, float], world: World
) -> bool:
    """Creates `path`. Returns False if it exists or another process is creating it.

    own: the name of this process. seen: announcement of another process -> the time when this process first
    saw it; kept between calls. Raises OSError if the storage fails.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return _create_file(Path(path), text)
    announcement = f"{path}.{own}"
    write_text(filesystem, announcement, "")
    try:
        while True:
            others = _announced(filesystem, path, own, seen, world)  # must be listed before `path` is tested
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                return False
            if not others:
                write_text(filesystem, path, text)
                return True
            if others[0] < announcement:
                return False
            world.sleep(ANNOUNCED_POLL_S)  # until each other process has withdrawn or written
    finally:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(announcement)


def _create_file(path: Path, text: str) -> bool:
    """`create_exclusively` for a local file. Until the text is written, others read an unreadable lease."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115  # closed below
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:  # the disk may be full
        path.unlink(missing_ok=True)
        raise
    return True


def _announced(
    filesystem: fs.FileSystem, path: str, own: str, seen: dict[str, float], world: World
) -> list[str]:
    """The announcements of other living processes, sorted; removes those of dead ones."""
    folder, _, name = path.rpartition("/")
    living = []
    for info in filesystem.get_file_info(fs.FileSelector(folder)):
        other = info.base_name
        if info.type != fs.FileType.File or not other.startswith(f"{name}.") or other.endswith(PARTIAL):
            continue
        if other == f"{name}.{own}":
            continue
        if world.now() - seen.setdefault(other, world.now()) < ABANDONED_AFTER_S:
            living.append(f"{folder}/{other}")
        else:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(f"{folder}/{other}")
    return sorted(living)
