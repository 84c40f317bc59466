"""Processes and their descendants, each known by pid and start time, so that a reused pid is not hit."""

import contextlib
import os
import signal
import time
from pathlib import Path

POLL_S = 0.1


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_same(pid: int, start: str) -> bool:
    """Whether the process that started at `start` still runs."""
    fields = stat(pid)
    return bool(fields) and fields[0] not in "ZX" and fields[19] == start


def family(root: int) -> dict[int, str]:
    """pid -> start time of a process and all its descendants."""
    found = {int(entry): stat(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    parents = {pid: int(fields[1]) for pid, fields in found.items() if fields}
    mine = {root} & set(parents)
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {pid: found[pid][19] for pid in mine}


def title(pid: int) -> str:
    """The command line: Ray writes into it what a worker does."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def send(pid: int, start: str, number: int) -> None:
    if is_same(pid, start):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(processes: dict[int, str]) -> None:
    """SIGKILL to each that still is the same process, until none is left."""
    deadline = time.monotonic() + 30
    while alive := {pid: start for pid, start in processes.items() if is_same(pid, start)}:
        assert time.monotonic() < deadline, f"cannot kill {alive}"
        for pid, start in alive.items():
            send(pid, start, signal.SIGKILL)
        time.sleep(POLL_S)
