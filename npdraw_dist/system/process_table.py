"""Finds which processes run on this machine, and reads a monotonic clock, for leases.

It does not use psutil, whose start time of a process changes when the system clock is corrected.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process. boot: id of the kernel's boot and of the namespace of process ids; "" if unknown.

    start: ticks from the boot to the start of the process. It distinguishes a later process with the same
    id, even after a correction of the clock.
    """

    host: str
    boot: str
    pid: int
    start: int


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_of(pid: int) -> Process:
    """The running process with the id `pid` on this machine."""
    boot = _boot()
    return Process(socket.gethostname(), boot, pid, _state(pid)[1] if boot else 0)


def this_process() -> Process:
    return process_of(os.getpid())


def _state(pid: int) -> tuple[str, int]:
    """A process's state (a letter) and start (ticks). Raises OSError if it has ended or is hidden."""
    fields = (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    )  # the program's name in parentheses can contain anything, also spaces
    return fields[0], int(fields[19])


def is_running(process: Process) -> bool | None:
    """Whether the process lives; None if this machine cannot see it."""
    if not process.boot or process.boot != _boot():
        return None
    try:
        state, start = _state(process.pid)
        return start == process.start and state not in "ZX"  # zombie or dead
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(process.pid, 0)
        except PermissionError:
            return None  # a process of another user, which /proc hides
        except OSError:
            return False
        return False


def _seconds() -> float:
    """Monotonic seconds, which include suspended time if the system has a clock for it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class World:
    """The environment of a lease: this process, a test of which processes run, and a clock.

    now: seconds, which never decrease. sleep: waits for a number of seconds.
    """

    process: Process
    is_running: Callable[[Process], bool | None] = is_running
    now: Callable[[], float] = _seconds
    sleep: Callable[[float], None] = time.sleep
