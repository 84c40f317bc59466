"""The network of a test bed: a namespace for each node, or loopback addresses without the right to make one.

Linux only. The names of namespaces and folders start with npd-<pid>-<start time>, after the process that
owns them. So `clean` can tell what a killed owner left behind from what a running one uses.
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
SUBNET = "10.77.0"  # all test beds use the same: each has a switch of its own


class Network(Protocol):
    """Addresses, ports and processes of the nodes 0, 1, ...; node 0 is the head."""

    def add(self, node: int) -> str:
        """Connects a node and returns its address."""

    def prefix(self, node: int) -> list[str]:
        """The words before a command that runs on the node."""

    def port(self, default: int) -> int:
        """A port for a service whose port on a machine of its own is `default`."""

    def pids(self, node: int, started: Iterable[int]) -> set[int]:
        """The processes of a node. `started`: those that the test bed itself started there."""

    def close(self) -> None:
        """Removes what the network made."""


class Namespaces:
    """A network namespace for each node, wired to a bridge in another one. Needs root and iproute2."""

    def __init__(self, name: str) -> None:
        """Makes the bridge. Raises OSError or CalledProcessError if that is not allowed."""
        if os.geteuid() != 0:
            raise PermissionError("not root")
        self.name = name
        self.namespaces: list[str] = []
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
        self.namespaces.append(namespace)
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

    def prefix(self, node: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self.name}_n{node}"]

    def port(self, default: int) -> int:
        return default

    def pids(self, node: int, started: Iterable[int]) -> set[int]:
        return _pids_in(f"{self.name}_n{node}")

    def close(self) -> None:
        while self.namespaces:
            _ip("netns", "delete", self.namespaces.pop())


class Loopback:
    """A loopback address and ports of its own for each node."""

    def add(self, node: int) -> str:
        return f"127.0.0.{node + 2}"  # Ray replaces 127.0.0.1 by the machine's address

    def prefix(self, node: int) -> list[str]:
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
    """Namespaces if they are allowed. Else prints one line and takes loopback addresses."""
    try:
        return Namespaces(name)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (error.stderr or "").strip() if isinstance(error, subprocess.CalledProcessError) else error
        print(f"no network namespaces here ({reason}): all nodes are on the loopback", flush=True)
        return Loopback()


def make_folder() -> Path:
    """A folder for the nodes' sessions, named after this process. Short, because it holds Unix sockets."""
    owner = os.getpid()
    for number in itertools.count():
        folder = Path(f"/tmp/npd-{owner}-{_start_time(owner)}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to each. Waits until they are gone or zombies of their parent."""
    targets = set(pids)
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while any(_is_alive(pid) for pid in targets) and time.monotonic() < deadline:
        time.sleep(0.02)


def clean() -> list[str]:
    """Removes what test beds with a dead owner left behind. Returns the names of what it removed."""
    removed = []
    if shutil.which("ip"):
        for namespace in re.findall(r"^\S+", _ip("netns", "list"), re.MULTILINE):
            if _is_abandoned(namespace):
                while pids := _pids_in(namespace):
                    kill(pids)
                _ip("netns", "delete", namespace)
                removed.append(namespace)
    for folder in Path("/tmp").glob("npd-*"):
        if _is_abandoned(folder.name):
            # Loopback nodes: Ray's own processes have the folder in their arguments.
            kill(_descendants(pid for pid in _all_pids() if f"{folder}/".encode() in _arguments(pid)))
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(str(folder))
    return removed


def _is_abandoned(name: str) -> bool:
    match = OWNED.match(name)
    return match is not None and _start_time(int(match[1])) != int(match[2])


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def _pids_in(namespace: str) -> set[int]:
    return {int(pid) for pid in _ip("netns", "pids", namespace).split()}


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _stat(pid: int) -> Sequence[str]:
    """The fields of /proc/<pid>/stat after the name; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ()


def _is_alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in DEAD


def _start_time(pid: int) -> int:
    """In clock ticks since boot, which tells a reused pid from its earlier process; 0 if there is none."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _descendants(roots: Iterable[int]) -> set[int]:
    """The living processes among `roots` and their descendants."""
    parents = {pid: int(fields[1]) for pid in _all_pids() if (fields := _stat(pid)) and fields[0] not in DEAD}
    found: set[int] = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found & set(parents)
