"""The network of a test bed: a namespace for each node, or loopback addresses if namespaces are forbidden.

Linux only. The names of namespaces and folders start with npd-<pid>-<start time>, after the process that
owns them. So `clean` can tell what a killed owner left behind from what a running one uses.
"""

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.helpers.processes import all_pids, family, is_same, kill_all, known, stat, title

OWNED = re.compile(r"npd-(\d+)-(\d+)-\d+")
SUBNET = "10.77.0"  # for all test beds, since each has its own bridge


class Loopback:
    """The network of the nodes 0, 1, ...: a loopback address and ports of its own for each; 0 is the head."""

    def add(self, node: int) -> str:
        """Connects a node and returns its address."""
        return f"127.0.0.{node + 2}"  # Ray replaces 127.0.0.1 by the machine's address

    def prefix(self, node: int) -> list[str]:
        """The words before a command that runs on the node."""
        return []

    def port(self, default: int) -> int:
        """A port for a service whose port on a machine of its own is `default`."""
        with socket.socket() as free:
            free.bind(("", 0))
            return int(free.getsockname()[1])

    def pids(self, node: int, started: Iterable[int]) -> set[int]:
        """The processes of a node. started: those that the test bed itself started there."""
        return set(family(*started))

    def close(self) -> None:
        """Removes the namespaces or the addresses."""


class Namespaces(Loopback):
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


def open_network(name: str) -> Loopback:
    """Namespaces if they are allowed; otherwise prints one line and takes loopback addresses."""
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
        folder = Path(f"/tmp/npd-{owner}-{stat(owner)[19]}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError


def clean() -> list[str]:
    """Removes what test beds with a dead owner left behind. Returns the names of what it removed."""
    removed = []
    if shutil.which("ip"):
        for namespace in re.findall(r"^\S+", _ip("netns", "list"), re.MULTILINE):
            if _is_abandoned(namespace):
                while pids := _pids_in(namespace):
                    kill_all(known(pids))
                _ip("netns", "delete", namespace)
                removed.append(namespace)
    for folder in Path("/tmp").glob("npd-*"):
        if _is_abandoned(folder.name):
            # Loopback nodes: Ray's own processes have the folder in their arguments.
            kill_all(family(*(pid for pid in all_pids() if f"{folder}/" in title(pid))))
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(str(folder))
    return removed


def _is_abandoned(name: str) -> bool:
    match = OWNED.match(name)
    return match is not None and not is_same(int(match[1]), match[2])


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def _pids_in(namespace: str) -> set[int]:
    return {int(pid) for pid in _ip("netns", "pids", namespace).split()}
