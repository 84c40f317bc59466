"""Nodes that die under a job on the test bed, and a storage that not all nodes see."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers import runs
from tests.helpers.testbed import Testbed
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[2]

SETTINGS = runs.SETTINGS | {"data.fraction": 1, "scale.num_workers": 2, "scale.cpus_per_worker": 1}
SHARDS = 60
# SHARDS shards to parse, and long enough for a node to die under the prior.
SETTINGS |= {"data.shard_rows": 30, "prior.images": 65536, "train.eval_every_images": 1024}


def job_of(**changed: int) -> list[str]:
    """The words of a job; `scale__wait_s=5` changes a setting."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    return [
        "npdraw_dist.train",
        *(word for key, value in settings.items() for word in (f"--{key}", str(value))),
    ]


JOB = job_of()

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need Linux, root and iproute2",
    ),
]


class Job:
    """A job that runs; `log` takes what it prints."""

    def __init__(self, testbed: Testbed, log: Path, *argv: str) -> None:
        self.log = log
        environment = ROOT / "cluster" / "runtime_env.yaml"
        with log.open("w") as out:
            self.process = testbed.submit(["python", "-m", *argv], ROOT, environment, output=out)

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        """Its status and what it printed."""
        return self.process.wait(), self.log.read_text()


def worker_addresses(testbed: Testbed) -> set[str]:
    """Of the nodes on which training workers are alive."""
    workers = testbed.query("actors", "class_name=RayTrainWorker", "state=ALIVE")
    used = {worker["node_id"] for worker in workers}
    return {node["node_ip"] for node in testbed.query("nodes") if node["node_id"] in used}


def ids_of(run: Path) -> list[str]:
    """The ids in all parses of a run, sorted."""
    shards = (run / "parses").rglob("*.parquet")
    return sorted(name for shard in shards for name in pq.read_table(shard, columns=["id"])["id"].to_pylist())


@pytest.mark.slow
def test_a_node_dies_under_the_parse(tmp_path: Path) -> None:
    """No image is missing or double."""
    with Testbed(count=3) as testbed:
        own = ["--storage", str(tmp_path), "--name", "nodes", "--stages", "bank,parse"]
        job = Job(testbed, tmp_path / "log", *JOB, *own)
        done = tmp_path / "nodes" / "parses" / ".done"
        job.until(lambda: done.is_dir() and len(list(done.iterdir())) >= 3)
        assert len(list(done.iterdir())) < SHARDS
        testbed.kill_node(2)
        status, out = job.end()
        assert status == 0, out
    ids = ids_of(tmp_path / "nodes")
    assert len(set(ids)) == len(ids) == 1797


@pytest.mark.slow
def test_a_node_dies_under_the_training(tmp_path: Path) -> None:
    """The weights are bitwise those of an undisturbed run."""
    folder = tmp_path / "nodes"
    with Testbed(count=3) as testbed:
        job = Job(testbed, tmp_path / "log", *JOB, "--storage", str(tmp_path), "--name", "nodes")
        job.until(lambda: list(folder.glob("prior/checkpoint_*/progress.json")))
        used = worker_addresses(testbed)
        victim = next(n for n in (1, 2) if testbed.nodes[n].address in used)
        testbed.kill_node(victim)
        assert not (folder / "prior" / "manifest.json").exists(), "the prior was done before its node died"
        status, out = job.end()
        assert status == 0, out
    assert "prior: resumes from checkpoint_" in out

    alone = [sys.executable, "-m", *JOB, "--storage", str(tmp_path), "--name", "one"]
    undisturbed = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert ids_of(folder) == ids_of(tmp_path / "one")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("nodes", "one")]
    assert weights[0] == weights[1]
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("nodes", "one")]
    assert metrics[0]["test/nll_iwae"] == metrics[1]["test/nll_iwae"]


@pytest.mark.slow
def test_what_a_cluster_lacks_is_said_in_a_line(tmp_path: Path) -> None:
    """A storage that one node does not see, and more workers than there is room for, within 60 s."""
    with Testbed(count=1) as testbed:
        testbed.add_node(hidden=tmp_path)
        job = Job(testbed, tmp_path / "log", *JOB, "--storage", str(tmp_path), "--name", "unseen")
        status, out = job.end()
        assert status != 0
        where = f"{tmp_path}/unseen"
        assert f"error: the storage {where} cannot be read from 10.77.0.2; on several nodes give" in out

        testbed.kill_node(1)
        testbed.add_node()
        # Ray notices a death only after some missed health checks.
        until(lambda: {n["node_ip"]: n["state"] for n in testbed.query("nodes")}["10.77.0.2"] == "DEAD", 120)
        wants = job_of(scale__cpus_per_worker=4, scale__wait_s=5)
        job = Job(testbed, tmp_path / "log", *wants, "--storage", str(tmp_path), "--name", "small")
        status, out = job.end()
        assert status != 0
        assert "error: 2 workers of 4 CPUs need 8; the cluster has 2" in out
        assert "nodes: 10.77.0.1: 1 CPU; 10.77.0.3: 1 CPU" in out
