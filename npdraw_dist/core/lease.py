"""One writer at a time: a lease on a folder, which dies with the process that holds it.

A lease is the file <folder>/.lease/<generation, 8 digits>.json. Taking it is creating the next generation,
which only one process can, where the highest one is released or its owner is dead. The highest generation is
never deleted: so an owner that was suspended and taken for dead finds a higher one and stops.

An owner on this machine is dead if the process table says so, one elsewhere if its beat counter stands still
for DEAD_AFTER_S of the observer's own clock. Clocks of two machines are never compared.

A local or network filesystem creates a new file atomically (NFS too). Object stores promise that a file that
was written is seen by every later listing (pyarrow offers no conditional writes). So each process announces
itself by a file before it looks: of two at least one sees the other, and the lower name goes first.
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
from npdraw_dist.core.storage import PARTIAL, impatient, read_bytes, write_text

LEASE_FOLDER = ".lease"
BEAT_S = 5.0  # between two beats of an owner
DEAD_AFTER_S = 30.0  # an owner elsewhere is dead if its beat stands still for so long
POLL_S = 1.0  # between two looks at an owner elsewhere
ABANDONED_AFTER_S = 30.0  # an announcement lasts for some requests; one that stays was left by a dead process
ANNOUNCED_POLL_S = 0.2


def is_lease(path: str) -> bool:
    """Whether a file belongs to a lease, and so is no content of its folder."""
    return f"/{LEASE_FOLDER}/" in path


@dataclass(frozen=True)
class Holder:
    """The content of a lease. age_s: of the lease at the last beat, by the owner's clock.

    group: processes of one group follow each other without a wait, since who starts them ends them first.
    """

    owner: str
    process: Process
    group: str = ""
    beat: int = 0
    age_s: float = 0.0
    released: bool = False

    @classmethod
    def read(cls, text: str) -> "Holder":
        """Treat unreadable text as an owner elsewhere whose beat is that text."""
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
    """Another process that lives has the lease."""


class LeaseLost(LeaseError):
    """Another process has taken the lease over; whatever this one still wrote would mix with its files."""


class Lease:
    """The lease on `folder` as a context manager; what: the thing that it protects, as a user knows it.

    wait_s: how long to wait for another owner that lives. group: as in `Holder`. In the block, a thread
    beats; if the lease was taken over, it interrupts the main thread, and the block ends in LeaseLost.
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
        # With long pauses between retries it would miss its beats; `_keep` repeats them.
        self.filesystem, self.folder, self.what = impatient(filesystem), f"{folder}/{LEASE_FOLDER}", what
        self.wait_s, self.world = wait_s, world or World(this_process())
        self.own = Holder(uuid.uuid4().hex, self.world.process, group)
        self.generation = 0  # not taken
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
        with contextlib.suppress(KeyboardInterrupt):  # its own
            self._thread.join(BEAT_S)
        if self._lost is not None:
            raise self._lost from None
        if not self._thread.is_alive():  # else the storage does not answer
            with contextlib.suppress(OSError, pa.ArrowException):
                self.release()

    def take(self) -> None:
        """Takes the lease. Raises LeaseHeld if another owner lives."""
        seen: tuple[str, int] | None = None  # an owner elsewhere, and its beat
        since = started = self.world.now()  # since when it stands still
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
        """Whether the owner is at work; None if only its beat can tell."""
        if holder is None or holder.released or (holder.group and holder.group == self.own.group):
            return False
        return self.world.is_running(holder.process)

    def _create(self, generation: int) -> bool:
        """Whether the lease of this generation is ours, and no higher one is there."""
        path, text = self._path(generation), self.own.text()
        if not create_exclusively(self.filesystem, path, text, self.own.owner, self._rivals, self.world):
            return False
        found = self._generations()
        ours = found[-1:] == [generation]  # else we were slow: this generation has been, and was removed
        for old in found[:-1] if ours else [generation]:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self._path(old))
        if ours:
            self.generation, self._taken = generation, self.world.now()
            self._renewed = self._taken
        return ours

    def beat(self) -> None:
        """Shows that the owner lives. Raises LeaseLost if the lease was taken over."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            generation, holder = self._highest()
            if holder is None:
                return  # the folder was removed; it shall not come back
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
        """Raises LeaseLost if the lease was taken over. Looks anew if the last beat was long ago."""
        if self._lost is not None:
            raise self._lost
        if self.world.now() - self._renewed > DEAD_AFTER_S / 2:
            with contextlib.suppress(OSError, pa.ArrowException):  # then no work can be written either
                self.beat()

    def release(self) -> None:
        """Marks the lease as free, if it is still ours and there."""
        with self._lock:
            generation, holder = self._highest()
            if generation == self.generation and holder is not None and holder.owner == self.own.owner:
                self._write(released=True)

    def _keep(self, interrupt: bool) -> None:
        """Beats until the block ends or the lease is lost."""
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except LeaseLost:
                if interrupt:  # as Ctrl-C does: a signal ends a wait too
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            except (OSError, pa.ArrowException):
                continue  # the storage fails; nobody else can take the lease there either

    def _write(self, **changes: Any) -> None:
        self.own = replace(self.own, **changes)
        write_text(self.filesystem, self._path(self.generation), self.own.text())

    def _path(self, generation: int) -> str:
        return f"{self.folder}/{generation:08d}.json"

    def _generations(self) -> list[int]:
        """All that are there, lowest first."""
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        except FileNotFoundError:  # removed, after pyarrow had seen that it is there
            return []
        names = [info.base_name.partition(".") for info in found if info.type == fs.FileType.File]
        return sorted(int(stem) for stem, _, suffix in names if stem.isdigit() and suffix == "json")

    def _highest(self) -> tuple[int, Holder | None]:
        """The highest generation and its content; (0, None) if there is none."""
        while found := self._generations():
            with contextlib.suppress(FileNotFoundError):  # a higher one came meanwhile
                content = read_bytes(self.filesystem, self._path(found[-1]))
                return found[-1], Holder.read(content.decode(errors="replace"))
        return 0, None


def create_exclusively(
    filesystem: fs.FileSystem, path: str, text: str, own: str, seen: dict[str, float], world: World
) -> bool:
    """Whether this call created `path`. False if it is there, or another process is creating it.

    own: the name of this process. seen: since when it sees the announcements of others, kept between calls.
    Raises OSError if the storage fails.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return _create_file(path, text)
    announcement = f"{path}.{own}"
    write_text(filesystem, announcement, "")
    try:
        while True:
            others = _announced(filesystem, path, own, seen, world)  # before the look at `path`
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                return False
            if not others:
                write_text(filesystem, path, text)
                return True
            if others[0] < announcement:
                return False
            world.sleep(ANNOUNCED_POLL_S)  # the others withdraw, or have seen nobody and are about to write
    finally:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(announcement)


def _create_file(path: str, text: str) -> bool:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    whole = Path(f"{path}.{uuid.uuid4().hex}{PARTIAL}")  # linked when it is written: nobody sees half of it
    try:
        _write_new(whole, text)
        try:
            os.link(whole, path)
        except FileExistsError:
            raise
        except OSError:  # a filesystem without links: others may see it empty for a moment
            _write_new(Path(path), text)
    except FileExistsError:
        return False
    finally:
        whole.unlink(missing_ok=True)
    return True


def _write_new(path: Path, text: str) -> None:
    """Creates the file; leaves none if it cannot be written. Raises FileExistsError, or OSError."""
    file = open(path, "x", encoding="utf-8")  # noqa: SIM115  # closed below
    try:
        with file:
            file.write(text)
    except OSError:  # the disk may be full
        path.unlink(missing_ok=True)
        raise


def _announced(
    filesystem: fs.FileSystem, path: str, own: str, seen: dict[str, float], world: World
) -> list[str]:
    """The announcements of other processes that live, sorted; removes those that dead ones left."""
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
