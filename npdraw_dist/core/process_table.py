"""Which processes run on this machine, and a clock: all that a lease asks of the machine."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process. `boot` and `start` tell it from a later process that has the same number.

    boot: the machine's start and the namespace of its process numbers; "" where the system has no /proc.
    start: clock ticks from the machine's start to that of the process. A correction of the clock leaves them
    as they are, unlike the time of day that psutil computes from them.
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


def _state(pid: int) -> tuple[str, int]:
    """The letter of a process's state, and its start in ticks. Raises OSError if there is no such process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may have spaces
    return fields[0], int(fields[19])


def process_of(pid: int) -> Process:
    """A process that runs on this machine."""
    boot = _boot()
    return Process(socket.gethostname(), boot, pid, _state(pid)[1] if boot else 0)


def this_process() -> Process:
    return process_of(os.getpid())


def is_running(process: Process) -> bool | None:
    """Whether the process lives; None if it is on another machine or another user's."""
    if not process.boot or process.boot != _boot():
        return None
    try:
        os.kill(process.pid, 0)
        state, start = _state(process.pid)
    except PermissionError:
        return None
    except OSError:
        return False
    return start == process.start and state not in "ZX"  # a zombie has ended


def _seconds() -> float:
    """Monotonic seconds, which count the time of a suspended machine where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class World:
    """This process, a look at which processes run, and a clock. Tests replace them.

    now: seconds, never backwards. sleep: waits for seconds.
    """

    process: Process
    is_running: Callable[[Process], bool | None] = is_running
    now: Callable[[], float] = _seconds
    sleep: Callable[[float], None] = time.sleep
