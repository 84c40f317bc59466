"""Jobs on the test bed of several nodes, and the marks of the tests that need it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
import pytest

from tests.helpers.processes import title, until
from tests.helpers.runs import SETTINGS as TINY
from tests.helpers.testbed import RAY, Testbed

ROOT = Path(__file__).parents[2]
Found = TypeVar("Found")

SHARDS = 60  # to parse; and the prior is long enough for a node to die under it
SETTINGS = TINY | {"data.fraction": 1, "scale.num_workers": 2, "scale.cpus_per_worker": 1}
SETTINGS |= {"data.shard_rows": 30, "prior.images": 24576, "train.eval_every_images": 1024}

MARKS = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need Linux, root and iproute2",
    ),
]


def job_of(**changed: object) -> list[str]:
    """The words of a job; `scale__wait_s=5` changes a setting, None takes it away."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    given = {key: value for key, value in settings.items() if value is not None}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return ["npdraw_dist.train", *words]


class Job:
    """A running job, whose output goes to `log`."""

    def __init__(self, testbed: Testbed, log: Path, *argv: str) -> None:
        self.testbed, self.log = testbed, log
        environment = ROOT / "cluster" / "runtime_env.yaml"
        with log.open("w") as out:
            self.process = testbed.submit(["python", "-m", *argv], ROOT, environment, output=out)

    def until(self, found: Callable[[], Found]) -> Found:
        """Waits for `found()` to be true, and returns it. The job must not end before."""
        deadline = time.monotonic() + 300
        while not (value := found()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return value

    def said(self) -> str:
        """Its output so far as one line, since long lines are wrapped."""
        return " ".join(self.log.read_text().split())

    def end(self) -> tuple[int, str]:
        """Waits for the end of the job. Its status and its output."""
        return self.process.wait(), self.log.read_text()

    def stop(self) -> None:
        submitted = re.search(r"raysubmit_\w+", self.log.read_text())
        assert submitted is not None
        command = [*RAY, "job", "stop", "--address", self.testbed.job_address, submitted[0]]
        assert self.testbed.popen(command).wait() == 0
        self.process.wait()


def workers(testbed: Testbed, kind: str = "TrainWorker") -> dict[int, int]:
    """pid -> node of the living processes in which Ray runs this kind of actor."""
    return {
        pid: number
        for number, node in enumerate(testbed.nodes)
        for pid in testbed.network.pids(number, node.running())
        if (words := title(pid)).startswith("ray::") and kind in words
    }


def lose(testbed: Testbed, number: int) -> None:
    """Kills a node, and waits until Ray knows it, after some failed health checks."""
    testbed.kill_node(number)
    address = testbed.nodes[number].address
    until(lambda: {n["node_ip"]: n["state"] for n in testbed.query("nodes")}[address] == "DEAD", 180)


def ids_of(run: Path) -> list[str]:
    """The ids in all parses of a run, sorted."""
    shards = (run / "parses").rglob("*.parquet")
    return sorted(name for shard in shards for name in pq.read_table(shard, columns=["id"])["id"].to_pylist())


def require_calm(run: Path, job: list[str]) -> None:
    """Fails unless a run has the ids and, bitwise, the weights of an undisturbed run on one node."""
    alone = [sys.executable, "-m", *job, "--storage", str(run.parent), "--name", f"{run.name}-calm"]
    calm = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    assert calm.returncode == 0, calm.stderr
    runs = [run, run.with_name(f"{run.name}-calm")]
    weights = [(each / "model" / "model.safetensors").read_bytes() for each in runs]
    assert weights[0] == weights[1]
    metrics = [json.loads((each / "metrics.json").read_text()) for each in runs]
    assert metrics[0]["test/nll_iwae"] == metrics[1]["test/nll_iwae"]
    ids = ids_of(run)
    assert len(set(ids)) == len(ids) == 1797
    assert ids == ids_of(runs[1])
