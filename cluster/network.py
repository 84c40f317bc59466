"""Where the nodes of a test bed live: a network namespace each, or the loopback where that is not allowed.

Linux only. Everything that a test bed makes is named npd-<pid>-<start time>-…, after the process that
owns it, so that what a killed owner left can be told from what a living one uses.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

OWNED = re.compile(r"npd-(\d+)-(\d+)-\d+")
DEAD = "ZX"  # states of /proc/<pid>/stat
KILL_TIMEOUT_S = 30.0
SUBNET = "10.77.0"  # a switch has no other network, so all test beds use the same


class Network(Protocol):
    """Addresses, ports and processes of the nodes 0, 1, …; node 0 is the head."""

    def add(self, node: int) -> str:
        """Makes room for a node; returns its address."""

    def enter(self, node: int) -> list[str]:
        """What goes before a command that shall run on the node."""

    def port(self, default: int) -> int:
        """A port for the service that has `default` on a machine of its own."""

    def pids(self, node: int, started: Iterable[int]) -> set[int]:
        """The processes of a node; `started` are those that the test bed started there itself."""

    def close(self) -> None:
        """Removes what `add` made."""


class Namespaces:
    """A network namespace a node, wired to a bridge that has one of its own. Needs root and iproute2."""

    def __init__(self, name: str) -> None:
        """Makes the bridge; raises OSError or CalledProcessError where that is not allowed."""
        if os.geteuid() != 0:
            raise PermissionError("not root")
        self.name = name
        self.made: list[str] = []
        self.switch = self._make("switch")
        try:
            _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "bridge", "up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    def _make(self, suffix: str) -> str:
        namespace = f"{self.name}_{suffix}"
        _ip("netns", "add", namespace)
        self.made.append(namespace)
        return namespace

    def add(self, node: int) -> str:
        namespace, address = self._make(f"n{node}"), f"{SUBNET}.{node + 1}"
        peer = ("peer", "name", "eth0", "netns", namespace)
        _ip("-n", self.switch, "link", "add", f"n{node}", "type", "veth", *peer)
        _ip("-n", self.switch, "link", "set", f"n{node}", "master", "bridge", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        return address

    def enter(self, node: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self.name}_n{node}"]

    def port(self, default: int) -> int:
        return default

    def pids(self, node: int, started: Iterable[int]) -> set[int]:
        return _inside(f"{self.name}_n{node}")

    def close(self) -> None:
        while self.made:
            _ip("netns", "delete", self.made.pop())


class Loopback:
    """A loopback address a node, with ports of its own."""

    def add(self, node: int) -> str:
        return f"127.0.0.{node + 2}"  # for 127.0.0.1 Ray takes the machine's own

    def enter(self, node: int) -> list[str]:
        return []

    def port(self, default: int) -> int:
        with socket.socket() as free:
            free.bind(("", 0))
            return int(free.getsockname()[1])

    def pids(self, node: int, started: Iterable[int]) -> set[int]:
        return _descendants(started)

    def close(self) -> None:
        pass


def open_network(name: str) -> Network:
    """Namespaces where they are allowed, else the loopback, said in one line."""
    try:
        return Namespaces(name)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (error.stderr or "").strip() if isinstance(error, subprocess.CalledProcessError) else error
        print(f"no network namespaces here ({reason}): all nodes are on the loopback", flush=True)
        return Loopback()


def make_folder() -> Path:
    """A folder for the nodes' sessions, named after this process; short, for it holds Unix sockets."""
    owner = os.getpid()
    for number in itertools.count():
        folder = Path(f"/tmp/npd-{owner}-{_start_time(owner)}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to each; waits until they are gone, or at most zombies of their parent."""
    doomed = set(pids)
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while any(_is_alive(pid) for pid in doomed) and time.monotonic() < deadline:
        time.sleep(0.02)


def clean() -> list[str]:
    """Removes what test beds left whose owner is dead; returns the names of it."""
    found = []
    if shutil.which("ip"):
        for namespace in re.findall(r"^\S+", _ip("netns", "list"), re.MULTILINE):
            if _is_left(namespace):
                while inside := _inside(namespace):
                    kill(inside)
                _ip("netns", "delete", namespace)
                found.append(namespace)
    for folder in Path("/tmp").glob("npd-*"):
        if _is_left(folder.name):
            # Loopback nodes: Ray's own processes have the folder in their arguments.
            kill(_descendants(pid for pid in _all_pids() if f"{folder}/".encode() in _arguments(pid)))
            shutil.rmtree(folder, ignore_errors=True)
            found.append(str(folder))
    return found


def _is_left(name: str) -> bool:
    match = OWNED.match(name)
    return match is not None and _start_time(int(match[1])) != int(match[2])


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def _inside(namespace: str) -> set[int]:
    return {int(pid) for pid in _ip("netns", "pids", namespace).split()}


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _stat(pid: int) -> Sequence[str]:
    """The fields of /proc/<pid>/stat after the name, none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ()


def _is_alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in DEAD


def _start_time(pid: int) -> int:
    """In clock ticks since boot, so that a reused pid is no living owner; 0 where there is no process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _descendants(roots: Iterable[int]) -> set[int]:
    """The living processes among `roots`, and all that descend from `roots`."""
    parents = {pid: int(fields[1]) for pid in _all_pids() if (fields := _stat(pid)) and fields[0] not in DEAD}
    found: set[int] = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found & set(parents)
