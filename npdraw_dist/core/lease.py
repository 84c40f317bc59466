"""A lease allows one writer at a time in a folder, and ends with the process that owns it.

A lease is the file <folder>/.lease/<generation, 8 digits>.json. A process takes it by creating the next
generation, once the highest one is released or its owner is dead. The highest generation is never deleted.
So an owner that was suspended and taken for dead finds a higher one and stops.

An owner on this machine is dead if the system says so. An owner elsewhere is dead if its beat counter has not
moved for DEAD_AFTER_S of the observer's own clock. Clocks of two machines are never compared.

A local or network filesystem creates a new file atomically, so one of several processes gets the lease.
pyarrow offers no such write to object stores. There a process writes the file, waits SETTLE_S, and has the
lease if the file is still its own. A request that takes longer can overwrite the file of an owner, which then
stops at its next beat.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.process_table import Process, World, this_process
from npdraw_dist.core.storage import impatient, read_bytes, write_text

LEASE_FOLDER = ".lease"
BEAT_S = 5.0  # between two beats of an owner
DEAD_AFTER_S = 30.0  # an owner elsewhere whose beat has not moved for so long is dead
POLL_S = 1.0  # between two looks at an owner elsewhere
SETTLE_S = 1.0  # between writing a lease to an object store and reading it again


def is_lease(path: str) -> bool:
    """Whether a file belongs to a lease and is not data of its folder."""
    return f"/{LEASE_FOLDER}/" in path


@dataclass(frozen=True)
class Holder:
    """The content of a lease.

    age_s: how old the lease was at the last beat, by the owner's clock. group: processes of one group follow
    each other without a wait, since their starter ends one before it starts the next.
    """

    owner: str
    process: Process
    group: str = ""
    beat: int = 0
    age_s: float = 0.0
    released: bool = False

    @classmethod
    def read(cls, text: str) -> "Holder":
        """Treats unreadable text as an owner on an unknown machine; a change of the text counts as a beat."""
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
    """The lease cannot be taken, or another process took it over."""


class LeaseHeld(LeaseError):
    """Another process has the lease, and it lives."""


class LeaseLost(LeaseError):
    """Another process took the lease over. This one must stop, or their files would mix."""


class Lease:
    """The lease on `folder`, as a context manager.

    what: the user's name of the folder's content. wait_s: how long to wait for another owner that lives.
    group: see `Holder`. While the block runs, a thread writes the beat. If another process took the lease
    over, the thread interrupts the main thread, and the block ends in LeaseLost.
    Entering raises LeaseHeld if another owner lives, and LeaseError if the storage fails.
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
        # Long pauses between retries would delay the beats; `_keep` repeats a beat that failed.
        self.filesystem, self.folder, self.what = impatient(filesystem), f"{folder}/{LEASE_FOLDER}", what
        self.wait_s, self.world = wait_s, world or World(this_process())
        self.own = Holder(uuid.uuid4().hex, self.world.process, group)
        self.generation = 0  # until it is taken
        self._taken = self._renewed = 0.0  # readings of `world.now`
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
        with contextlib.suppress(KeyboardInterrupt):  # the interrupt of `_keep`
            self._thread.join(BEAT_S)
        if self._lost is not None:
            raise self._lost from None
        if not self._thread.is_alive():  # otherwise it still waits for the storage
            with contextlib.suppress(OSError, pa.ArrowException):
                self.release()

    def take(self) -> None:
        """Takes the lease. Raises LeaseHeld if another owner lives."""
        seen: tuple[str, int] | None = None  # the owner and its beat at the last look
        since = started = self.world.now()  # since: time of the last observed beat
        while True:
            generation, holder = self._highest()
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
        """Whether the owner may still write; None if only its beat can tell."""
        if holder is None or holder.released or (holder.group and holder.group == self.own.group):
            return False
        return self.world.is_running(holder.process)

    def _create(self, generation: int) -> bool:
        """Whether this owner now has the lease, as `generation`."""
        path, text = self._path(generation), self.own.text()
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            write_text(self.filesystem, path, text)
            self.world.sleep(SETTLE_S)  # who saw no owner either has written the file by then
        elif not _create_file(path, text):
            return False
        highest, holder = self._highest()
        for older in [found for found in self._generations() if found < highest]:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self._path(older))
        # Not ours if another process wrote it later, or if we were slow and created one that was deleted.
        ours = highest == generation and holder is not None and holder.owner == self.own.owner
        if ours:
            self.generation = generation
            self._taken = self._renewed = self.world.now()
        return ours

    def beat(self) -> None:
        """Shows that the owner lives. Raises LeaseLost if the lease was taken over."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            generation, holder = self._highest()
            if holder is None:
                return  # the folder was removed, and a beat must not create it again
            if generation > self.generation or holder.owner != self.own.owner:
                self._lost = LeaseLost(
                    f"{self.what} was taken over by {holder}, since process {self.own.process.pid} on "
                    f"{self.own.process.host} had been silent for too long; this process stops"
                )
                raise self._lost
            age = self.world.now() - self._taken
            self._write(beat=self.own.beat + 1, age_s=round(age, 1))
            self._renewed = self.world.now()

    def check(self) -> None:
        """Raises LeaseLost if the lease was taken over. Reads it again if the last beat was long ago."""
        if self._lost is not None:
            raise self._lost
        if self.world.now() - self._renewed > DEAD_AFTER_S / 2:
            with contextlib.suppress(OSError, pa.ArrowException):  # the caller's own writes fail too
                self.beat()

    def release(self) -> None:
        """Marks the lease as free if it is still there and ours."""
        with self._lock:
            generation, holder = self._highest()
            if generation == self.generation and holder is not None and holder.owner == self.own.owner:
                self._write(released=True)

    def _keep(self, interrupt: bool) -> None:
        """Writes the beat until the block ends or the lease is lost."""
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except LeaseLost:
                if interrupt:  # by a signal, as Ctrl-C does, since it also ends a wait
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            except (OSError, pa.ArrowException):
                continue  # while the storage fails, nobody else can take the lease either

    def _write(self, **changes: Any) -> None:
        self.own = replace(self.own, **changes)
        write_text(self.filesystem, self._path(self.generation), self.own.text())

    def _path(self, generation: int) -> str:
        return f"{self.folder}/{generation:08d}.json"

    def _generations(self) -> list[int]:
        """The generations in the folder, lowest first."""
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        except FileNotFoundError:  # it was removed between two requests of pyarrow
            return []
        names = [info.base_name.partition(".") for info in found if info.type == fs.FileType.File]
        return sorted(int(stem) for stem, _, suffix in names if stem.isdigit() and suffix == "json")

    def _highest(self) -> tuple[int, Holder | None]:
        """The highest generation and its content; (0, None) if there is none."""
        while found := self._generations():
            with contextlib.suppress(FileNotFoundError):  # a higher one has replaced it
                content = read_bytes(self.filesystem, self._path(found[-1]))
                return found[-1], Holder.read(content.decode(errors="replace"))
        return 0, None


def _create_file(path: str, text: str) -> bool:
    """Whether this call created the file, which others may see empty for a moment. Raises OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115  # closed below
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except OSError:  # the disk may be full
        Path(path).unlink(missing_ok=True)
        raise
    return True
