"""python -m cluster.testbed: a Ray cluster of several nodes on one machine, and a job on it.

Each node has its own network namespace, address and Ray session (cluster/network.py). Linux.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt
from pydantic_settings import CliImplicitFlag

from cluster.network import Network, clean, kill, make_folder, open_network
from npdraw_dist.config.cli import Command, parse_flags, run_command, validate
from npdraw_dist.core.errors import UserError

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
RUNTIME_ENV = Path("cluster/runtime_env.yaml")
START_TIMEOUT_S = 180.0
UP = "Ray runtime started."


class Testbed:
    """A context manager: a Ray cluster of `nodes` nodes that is gone at its end, also by SIGTERM.

    cpus_per_node: CPUs that Ray deals out on each node, whatever the machine has.
    object_store_mb: object store of each node.
    """

    __test__ = False  # no test class of pytest

    def __init__(self, nodes: int = 3, cpus_per_node: int = 1, object_store_mb: int = 128) -> None:
        self.wanted, self.cpus, self.store = nodes, cpus_per_node, object_store_mb << 20
        self.addresses: list[str] = []
        self.started: list[list[subprocess.Popen[Any]]] = []  # by node: Ray first, then clients
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k.lower() not in PROXIES}
        # One mode and one token for all nodes and clients, instead of what lies in the home folder.
        self.env = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray counts by CPUs what starts at once and what stays: with one CPU a node, one process.
            "RAY_worker_maximum_startup_concurrency": "4",
            "RAY_num_workers_soft_limit": "4",
        }

    def __enter__(self) -> "Testbed":
        self._handler = signal.getsignal(signal.SIGTERM)
        if self._handler == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self.folder = make_folder()
        try:
            self.network: Network = open_network(self.folder.name)
            self._wait([self._start()])
            self._wait([self._start() for _ in range(self.wanted - 1)])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills all processes of all nodes, removes namespaces and folder."""
        if self._handler == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end is near; do not stop half-way
        try:
            for node in range(len(self.started)):
                self.kill_node(node)
            if hasattr(self, "network"):
                self.network.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            signal.signal(signal.SIGTERM, self._handler)

    def add_node(self, hidden: Path | None = None) -> int:
        """Starts one more node; returns its number. It sees its own empty disk at the folder `hidden`."""
        node = self._start(hidden)
        self._wait([node])
        return node

    def kill_node(self, node: int) -> None:
        """SIGKILL to every process of the node, as a power cut would."""
        # One that has just been started may not have entered its namespace yet.
        while pids := (started := self._living(node)) | self.network.pids(node, started):
            kill(pids)

    def _living(self, node: int) -> set[int]:
        """The processes that were started on a node from here and have not ended."""
        return {process.pid for process in self.started[node] if process.poll() is None}

    def popen(
        self, argv: Sequence[str], node: int = 0, env: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.Popen[Any]":
        """Starts a command on a node; `options` are those of subprocess.Popen."""
        argv = [*self.network.enter(node), *argv]
        process = subprocess.Popen(argv, env={**self.env, **(env or {})}, start_new_session=True, **options)
        self.started[node].append(process)
        return process

    def run(
        self, argv: Sequence[str], node: int = 0, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command on a node to its end; returns its status and captured output."""
        process = self.popen(argv, node, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate()
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def submit(
        self, argv: Sequence[str], working_dir: Path | None = None, runtime_env: Path | None = None
    ) -> int:
        """Runs a command as a Ray job and shows its log; returns 0 where the job succeeded."""
        options = ["--working-dir", str(working_dir)] if working_dir else []
        options += ["--runtime-env", str(runtime_env)] if runtime_env else []
        process = self.popen([*RAY, "job", "submit", "--address", self.job_address, *options, "--", *argv])
        return process.wait()

    def query(self, what: str, *filters: str) -> list[dict[str, Any]]:
        """What `ray list` knows of `nodes`, `actors`, …, each as a dictionary."""
        options = [word for text in filters for word in ("--filter", text)]
        done = self.run([*RAY, "list", what, "--address", self.job_address, "--format", "json", *options])
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def worker_nodes(self) -> list[str]:
        """The nodes on which training workers ran, each once: address and start of Ray's id."""
        workers = self.query("actors", "class_name=RayTrainWorker")
        used = {worker["node_id"] for worker in workers}
        found = [node for node in self.query("nodes") if node["node_id"] in used]
        return sorted(f"{node['node_ip']} ({node['node_id'][:6]})" for node in found)

    def _start(self, hidden: Path | None = None) -> int:
        """Starts a node's Ray without waiting for it; returns its number. Node 0 is the head."""
        # `ip netns exec` has given the node's processes a mount namespace of their own.
        mount = ["sh", "-c", 'mount -t tmpfs npdraw "$0" && exec "$@"', str(hidden)] if hidden else []
        node, network = len(self.started), self.network
        address = network.add(node)
        self.addresses.append(address)
        self.started.append([])
        if node == 0:
            port, dashboard = network.port(6379), network.port(8265)
            self.address, self.job_address = f"{address}:{port}", f"http://{address}:{dashboard}"
            role = [
                "--head",
                f"--port={port}",
                f"--dashboard-host={address}",
                f"--dashboard-port={dashboard}",
            ]
            role.append(f"--ray-client-server-port={network.port(10001)}")
        else:
            role = [f"--address={self.address}"]
        with self._log(node).open("w") as log:
            self.popen(
                [
                    *mount,
                    *RAY,
                    "start",
                    "--block",
                    *role,
                    f"--node-ip-address={address}",
                    f"--num-cpus={self.cpus}",
                    "--num-gpus=0",  # each node would offer the machine's own
                    f"--object-store-memory={self.store}",
                    f"--temp-dir={self.folder}/n{node}",
                    f"--dashboard-agent-listen-port={network.port(52365)}",
                ],
                node,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return node

    def _wait(self, nodes: Sequence[int]) -> None:
        """Until the nodes are up; raises UserError with the end of its log where one is not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for node in nodes:
            while UP not in (text := self._log(node).read_text()):
                if self.started[node][0].poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"node {node} did not start: {' '.join(text.split())[-1000:]}")
                time.sleep(0.1)

    def _log(self, node: int) -> Path:
        return self.folder / f"n{node}.log"


# A proxy of the machine would catch the requests to the nodes.
PROXIES = {"http_proxy", "https_proxy", "all_proxy"}


class Flags(Command):
    """Starts a Ray cluster on this machine, runs the command after -- on it as a job, stops the cluster."""

    nodes: PositiveInt = Field(3, description="nodes of the cluster")
    cpus: PositiveInt = Field(1, description="CPUs that Ray deals out on each node")
    clean: CliImplicitFlag[bool] = Field(False, description="remove what killed test beds left, and stop")


def check_storage(command: Sequence[str]) -> None:
    """Raises UserError where the runs of a command would lie in the job's own folder."""
    if not {"npdraw_dist.train", "tune_spaces.sweep"} & set(command):
        return
    words = " ".join(command).replace("--storage=", "--storage ").split()
    storage = words[words.index("--storage") + 1] if "--storage" in words[:-1] else "runs"
    if not storage.startswith("/") and "://" not in storage:
        raise UserError(
            f"--storage {storage} lies in the job's own folder, gone with the cluster: give /... or a URI"
        )


def main(argv: Sequence[str]) -> None:
    split = list(argv).index("--") if "--" in argv else len(argv)
    flags = validate(Flags, parse_flags(Flags, "cluster.testbed", argv[:split]))
    command = list(argv[split + 1 :])
    if not sys.platform.startswith("linux"):
        raise UserError("the test bed needs Linux")
    if flags.clean:
        print("\n".join(clean()) or "nothing is left of any test bed")
        return
    if not command:
        raise UserError("give the command after --, as in: -- python -m npdraw_dist.train --storage FOLDER")
    check_storage(command)
    started = time.monotonic()
    with Testbed(flags.nodes, flags.cpus) as testbed:
        up = time.monotonic() - started
        print(f"{flags.nodes} nodes up in {up:.0f} s: {', '.join(testbed.addresses)}", flush=True)
        status = testbed.submit(command, Path.cwd(), RUNTIME_ENV if RUNTIME_ENV.exists() else None)
        workers = testbed.worker_nodes()
        print(f"training workers ran on {len(workers)} nodes: {', '.join(workers)}", flush=True)
    sys.exit(status)


if __name__ == "__main__":
    run_command(main)
