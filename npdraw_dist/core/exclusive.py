"""Creating a file that must not be there yet, where only one of several processes may succeed.

A local or network filesystem creates a new file atomically (NFS too). Object stores promise that a file that
was written is seen by every later listing (pyarrow offers no conditional writes). So each process announces
itself by a file before it looks: of two at least one sees the other, and the lower name goes first.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyarrow import fs

from npdraw_dist.core.storage import PARTIAL, write_text

ABANDONED_AFTER_S = 30.0  # an announcement lasts for some requests; one that stays was left by a dead process
POLL_S = 0.2


def _seconds() -> float:
    """Monotonic seconds, including suspend where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class Clock:
    """now: seconds, never backwards. sleep: waits for seconds."""

    now: Callable[[], float] = _seconds
    sleep: Callable[[float], None] = time.sleep


def create_exclusively(
    filesystem: fs.FileSystem, path: str, text: str, own: str, seen: dict[str, float], clock: Clock = Clock()
) -> bool:
    """Whether this call created `path`. False if it is there, or another process is creating it.

    own: the name of this process. seen: since when it sees the announcements of others, kept between calls.
    Others may see a local file empty for a moment. Raises OSError if the storage fails.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return _create_file(path, text)
    announcement = f"{path}.{own}"
    write_text(filesystem, announcement, "")
    try:
        while True:
            others = _announced(filesystem, path, own, seen, clock)  # before the look at `path`
            if filesystem.get_file_info(path).type != fs.FileType.NotFound:
                return False
            if not others:
                write_text(filesystem, path, text)
                return True
            if others[0] < announcement:
                return False
            clock.sleep(POLL_S)  # the others withdraw, or have seen nobody and are about to write
    finally:
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(announcement)


def _create_file(path: str, text: str) -> bool:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115  # closed below
    except FileExistsError:
        return False
    try:
        with file:
            file.write(text)
    except BaseException:  # the disk may be full
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    return True


def _announced(
    filesystem: fs.FileSystem, path: str, own: str, seen: dict[str, float], clock: Clock
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
        if clock.now() - seen.setdefault(other, clock.now()) < ABANDONED_AFTER_S:
            living.append(f"{folder}/{other}")
        else:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(f"{folder}/{other}")
    return sorted(living)
