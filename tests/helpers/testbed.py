"""python -m tests.helpers.testbed: a Ray cluster of several nodes on one machine, and a job on it.

Each node has its own network namespace, address and Ray session (tests/helpers/network.py). Linux only.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

from pydantic import Field, PositiveInt

from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.system.errors import UserError
from tests.helpers.network import clean, make_folder, open_network
from tests.helpers.processes import kill_all, known

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Prints the answer of a dashboard at a URL. `ray list` imports all of Ray for it, for seconds each time.
ASK = """
import os, sys, urllib.request
token = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
request = urllib.request.Request(sys.argv[1], headers=token)
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""
RUNTIME_ENV = Path("cluster/runtime_env.yaml")
START_TIMEOUT_S = 180.0
STARTED = "Ray runtime started."  # in the log of a node that is up
TIMED_OUT = "timed out during startup"  # Ray gives a node 30 s, which a busy machine can exceed
OBJECT_STORE_BYTES = 128 << 20  # size for each node
PROXIES = {"http_proxy", "https_proxy", "all_proxy"}  # a proxy would catch the requests to the nodes

Output = IO[str] | int | None  # a file, subprocess.PIPE, or None for the output of the test bed


@dataclass(frozen=True)
class Size:
    """Resources that Ray offers on a node, whatever the machine has. torch does not find these GPUs."""

    cpus: int = 1
    gpus: int = 0


@dataclass
class Node:
    """A node: its address, the command of its Ray, and the processes that the test bed started on it."""

    address: str
    command: list[str]
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def running(self) -> set[int]:
        """The ids of the processes that have not ended."""
        return {process.pid for process in self.processes if process.poll() is None}


class Testbed:
    """A context manager: a Ray cluster of `count` nodes. Its exit, also by SIGTERM, removes everything.

    cpus: that Ray offers on each node. sizes: of the nodes, where they are not alike. prepare: shell commands
    that each node runs before Ray, as root in a mount namespace of its own; $NODE is its number.
    """

    __test__ = False  # not a test class of pytest

    def __init__(self, count: int = 3, cpus: int = 1, prepare: str = "", sizes: Sequence[Size] = ()) -> None:
        self.sizes, self.prepare = sizes or [Size(cpus)] * count, prepare
        self.nodes: list[Node] = []
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k.lower() not in PROXIES}
        # All nodes and clients share one mode and one token, not those of the home folder.
        self.env = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # workers would wait for the tests beside them
            # By default Ray starts and keeps one worker process for each CPU: one on a node of one CPU.
            "RAY_worker_maximum_startup_concurrency": "4",
            "RAY_num_workers_soft_limit": "4",
        }

    def __enter__(self) -> "Testbed":
        with ExitStack() as cleanup:
            cleanup.enter_context(_exit_on_sigterm())
            self.folder = make_folder()
            cleanup.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.network = open_network(self.folder.name)
            cleanup.callback(self.network.close)
            cleanup.callback(self._kill_all)
            self._start_all()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def add_node(self, hidden: Path | None = None, size: Size = Size()) -> int:
        """Starts one more node and returns its number. It sees an empty disk of its own at `hidden`."""
        number = self._start(size, hidden)
        self._wait([number])
        return number

    def kill_node(self, number: int) -> None:
        """SIGKILL to every process of the node, like a power cut."""
        # A process that has just started may not be in its namespace yet.
        while pids := (running := self.nodes[number].running()) | self.network.pids(number, running):
            kill_all(known(pids))

    def start_again(self) -> None:
        """Kills the rest of a cluster that lost its head, and starts another one with as many nodes."""
        for number in range(len(self.nodes)):
            self.kill_node(number)
        self._start_all()

    def _start_all(self) -> None:
        head, *others = self.sizes
        self._wait([self._start(head, is_head=True)])
        self._wait([self._start(size) for size in others])

    def _kill_all(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the cleanup
        for number in range(len(self.nodes)):
            self.kill_node(number)

    def popen(
        self, argv: Sequence[str], number: int = 0, stdout: Output = None, stderr: Output = None
    ) -> "subprocess.Popen[str]":
        """Starts a command on a node."""
        command, null = [*self.network.prefix(number), *argv], subprocess.DEVNULL
        process = subprocess.Popen(
            command, env=self.env, start_new_session=True, stdin=null, stdout=stdout, stderr=stderr, text=True
        )
        self.nodes[number].processes.append(process)
        return process

    def submit(
        self, argv: Sequence[str], folder: Path, runtime_env: Path | None = None, output: Output = None
    ) -> "subprocess.Popen[str]":
        """Starts a command as a Ray job. The process prints the job's log and exits 0 if the job succeeds."""
        options = ["--address", self.job_address, "--working-dir", str(folder)]
        options += ["--runtime-env", str(runtime_env)] if runtime_env else []
        command = [*RAY, "job", "submit", *options, "--", *argv]
        return self.popen(command, stdout=output, stderr=None if output is None else subprocess.STDOUT)

    def query(self, what: str, **equals: str) -> list[dict[str, Any]]:
        """The `nodes`, `actors`, ... that the cluster's dashboard lists with these values of their fields."""
        filters = [("filter_keys", key) for key in equals] + [("filter_values", v) for v in equals.values()]
        filters += [("filter_predicates", "=")] * len(equals)
        url = f"{self.job_address}/api/v0/{what}?{urlencode([('limit', 1000), *filters])}"
        process = self.popen([sys.executable, "-S", "-c", ASK, url], stdout=subprocess.PIPE)
        out, _ = process.communicate()
        assert process.returncode == 0, url
        return list(json.loads(out)["data"]["result"]["result"])

    def hosts(self, start: str, **equals: str) -> set[str]:
        """Addresses of the nodes with actors of these values whose class name begins with `start`."""
        actors = self.query("actors", **equals)
        used = {actor["node_id"] for actor in actors if actor["class_name"].startswith(start)}
        return {node["node_ip"] for node in self.query("nodes") if node["node_id"] in used}

    def _start(self, size: Size, hidden: Path | None = None, is_head: bool = False) -> int:
        """Starts Ray on a new node without waiting for it. Returns its number."""
        number, network = len(self.nodes), self.network
        # `ip netns exec` has given the node's processes a mount namespace of their own.
        before = [f"export NODE={number}", *([self.prepare] if self.prepare else [])]
        before += ['mount -t tmpfs npdraw "$0"'] if hidden else []
        mount = ["sh", "-c", " && ".join([*before, 'exec "$@"']), str(hidden)] if len(before) > 1 else []
        address = network.add(number)
        where = self._head(address) if is_head else [f"--address={self.address}"]
        options = [
            *(f"--num-cpus={size.cpus}", f"--num-gpus={size.gpus}"),  # Ray would offer the machine's own
            *(f"--node-ip-address={address}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            *(f"--temp-dir={self.folder}/n{number}", f"--dashboard-agent-listen-port={network.port(52365)}"),
        ]
        self.nodes.append(Node(address, [*mount, *RAY, "start", "--block", *where, *options]))
        self._launch(number)
        return number

    def _launch(self, number: int) -> None:
        with self._log(number).open("w") as log:
            self.popen(self.nodes[number].command, number, stdout=log, stderr=subprocess.STDOUT)

    def _head(self, address: str) -> list[str]:
        """The options of the head. Sets the addresses of the cluster and of its job server."""
        port, dashboard = self.network.port(6379), self.network.port(8265)
        self.address, self.job_address = f"{address}:{port}", f"http://{address}:{dashboard}"
        client = self.network.port(10001)
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        return ["--head", *ports, f"--dashboard-host={address}"]

    def _wait(self, numbers: Sequence[int]) -> None:
        """Waits until the nodes are up. Raises UserError with the end of the log of one that is not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for number in numbers:
            while STARTED not in (text := self._log(number).read_text()):
                ended, late = not self.nodes[number].running(), time.monotonic() > deadline
                if ended and TIMED_OUT in text and not late:
                    self.kill_node(number)  # what its Ray left
                    self._launch(number)
                elif ended or late:
                    head = f"; the head: {self._log(0).read_text()[-300:]}" if number else ""
                    raise UserError(f"node {number} did not start: {' '.join((text + head).split())[-1300:]}")
                time.sleep(0.1)

    def _log(self, number: int) -> Path:
        return self.folder / f"n{number}.log"


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that the cleanup runs. A handler of the user's stays."""
    previous = signal.getsignal(signal.SIGTERM)
    if previous == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Flags(Command):
    """Starts a Ray cluster on this machine, runs the command after -- on it as a job, stops the cluster."""

    nodes: PositiveInt = Field(3, description="number of nodes")
    cpus: PositiveInt = Field(1, description="CPUs that Ray offers on each node")
    clean: bool = Field(False, description="remove what killed test beds left behind, then stop")


def check_storage(command: Sequence[str]) -> None:
    """Raises UserError if the command would write its runs into the job's own folder."""
    if not {"npdraw_dist.train", "tune_spaces.sweep"} & set(command):
        return
    words = " ".join(command).replace("--storage=", "--storage ").split()
    storage = words[words.index("--storage") + 1] if "--storage" in words[:-1] else "runs"
    if not storage.startswith("/") and "://" not in storage:
        raise UserError(
            f"--storage {storage} is in the job's own folder, which ends with the cluster: give /... or a URI"
        )


def main(argv: Sequence[str]) -> None:
    split = list(argv).index("--") if "--" in argv else len(argv)
    flags = validate(Flags, parse_flags(Flags, "tests.helpers.testbed", argv[:split]))
    command = list(argv[split + 1 :])
    if not sys.platform.startswith("linux"):
        raise UserError("the test bed needs Linux")
    if flags.clean:
        print("\n".join(clean()) or "no test bed left anything behind")
        return
    if not command:
        raise UserError("give the command after --, as in: -- python -m npdraw_dist.train --storage FOLDER")
    check_storage(command)
    started = time.monotonic()
    with Testbed(flags.nodes, flags.cpus) as testbed:
        up = time.monotonic() - started
        addresses = ", ".join(node.address for node in testbed.nodes)
        print(f"{flags.nodes} nodes up in {up:.0f} s: {addresses}", flush=True)
        status = testbed.submit(command, Path.cwd(), RUNTIME_ENV if RUNTIME_ENV.exists() else None).wait()
        found = sorted(testbed.hosts("RayTrainWorker"))
        print(f"training workers ran on {len(found)} nodes: {', '.join(found)}", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    run_command(main)
