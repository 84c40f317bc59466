"""Processes by pid and start time, so that no reused pid is hit, their descendants, and waiting."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

POLL_S = 0.1
DEAD = "ZX"  # states of /proc/<pid>/stat


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def known(pids: Iterable[int]) -> dict[int, str]:
    """pid -> start time of the processes that still run."""
    found = {pid: stat(pid) for pid in pids}
    return {pid: fields[19] for pid, fields in found.items() if fields and fields[0] not in DEAD}


def is_same(pid: int, start: str) -> bool:
    """Whether the process that started at `start` still runs."""
    return known([pid]) == {pid: start}


def family(*roots: int) -> dict[int, str]:
    """pid -> start time of processes and all their descendants."""
    parents = {pid: int(fields[1]) for pid in all_pids() if (fields := stat(pid)) and fields[0] not in DEAD}
    mine = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return known(mine)


def all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def title(pid: int) -> str:
    """The command line, into which Ray writes what a worker does."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def send(pid: int, start: str, number: int) -> None:
    if is_same(pid, start):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Returns as soon as `true()` is; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        time.sleep(POLL_S)


def kill_all(processes: dict[int, str]) -> None:
    """Sends SIGKILL to the processes that are still the same, until none is left."""

    def gone() -> bool:
        for pid, start in processes.items():
            send(pid, start, signal.SIGKILL)
        return not any(is_same(pid, start) for pid, start in processes.items())

    until(gone, 30)
