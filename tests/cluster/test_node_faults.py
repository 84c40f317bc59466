"""Nodes that die under a job, or that the cloud takes back, and a storage that not all nodes see."""

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

from tests.helpers.runs import SETTINGS as TINY
from tests.helpers.testbed import Testbed

ROOT = Path(__file__).parents[2]

SHARDS = 60  # to parse; and the prior is long enough for a node to die under it
SETTINGS = TINY | {"data.fraction": 1, "scale.num_workers": 2, "scale.cpus_per_worker": 1}
SETTINGS |= {"data.shard_rows": 30, "prior.images": 65536, "train.eval_every_images": 1024}


def job_of(**changed: int) -> list[str]:
    """The words of a job; `scale__wait_s=5` changes a setting."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["npdraw_dist.train", *words]


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


def ids_of(run: Path) -> list[str]:
    """The ids in all parses of a run, sorted."""
    shards = (run / "parses").rglob("*.parquet")
    return sorted(name for shard in shards for name in pq.read_table(shard, columns=["id"])["id"].to_pylist())


def require_calm(run: Path, job: list[str]) -> None:
    """That a run has the weights, bitwise, and the ids of an undisturbed run of the job on one node."""
    alone = [sys.executable, "-m", *job, "--storage", str(run.parent), "--name", f"{run.name}-calm"]
    calm = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    assert calm.returncode == 0, calm.stderr
    runs = [run, run.with_name(f"{run.name}-calm")]
    weights = [(each / "model" / "model.safetensors").read_bytes() for each in runs]
    assert weights[0] == weights[1]
    metrics = [json.loads((each / "metrics.json").read_text()) for each in runs]
    assert metrics[0]["test/nll_iwae"] == metrics[1]["test/nll_iwae"]
    assert ids_of(runs[0]) == ids_of(runs[1])


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
        used = testbed.hosts("RayTrainWorker", state="ALIVE")
        victim = next(n for n in (1, 2) if testbed.nodes[n].address in used)
        testbed.kill_node(victim)
        assert not (folder / "prior" / "manifest.json").exists(), "the prior was done before its node died"
        status, out = job.end()
        assert status == 0, out
    assert "prior: resumes from checkpoint_" in out

    require_calm(folder, JOB)


@pytest.mark.slow
def test_a_node_that_does_not_see_the_storage_is_named(tmp_path: Path) -> None:
    with Testbed(count=1) as testbed:
        testbed.add_node(hidden=tmp_path)
        job = Job(testbed, tmp_path / "log", *JOB, "--storage", str(tmp_path), "--name", "unseen")
        status, out = job.end()
    assert status != 0
    assert f"error: the storage {tmp_path}/unseen cannot be read from 10.77.0.2; on several" in out


@pytest.mark.slow
def test_ray_drains_a_node_that_the_cloud_takes_back(tmp_path: Path) -> None:
    """The service answers on the node alone, as a cloud's does."""
    server = tmp_path / "server.py"
    server.write_text(
        "from http.server import ThreadingHTTPServer\n"
        "from tests.cluster.test_spot_notice import Metadata\n"
        "Metadata.taken = True\n"
        "ThreadingHTTPServer(('127.0.0.1', 8080), Metadata).serve_forever()\n"
    )
    # As Ray Train's watcher asks for the nodes that are being drained.
    asked = "import json, ray; ray.init('auto', log_to_driver=False); "
    asked += "print(json.dumps(ray._private.state.state.get_draining_nodes()))"
    script = [sys.executable, str(ROOT / "cluster" / "spot_notice.py"), "--cloud", "google"]
    with Testbed(count=2) as testbed, (tmp_path / "log").open("w+") as log:
        testbed.env["PYTHONPATH"] = str(ROOT)
        # Tests before may have a Ray of their own on this machine, and `auto` could take that.
        testbed.env["RAY_ADDRESS"] = "10.77.0.1:6379"
        testbed.popen([sys.executable, str(server)], 1)
        watcher = testbed.popen([*script, "--metadata", "http://127.0.0.1:8080"], 1, log, log)
        assert watcher.wait(120) == 0, (tmp_path / "log").read_text()
        answer = testbed.popen([sys.executable, "-c", asked], 0, subprocess.PIPE).communicate()[0]
        nodes = {node["node_ip"]: node for node in testbed.query("nodes")}
    drained, head = nodes["10.77.0.2"], nodes["10.77.0.1"]
    draining = set(json.loads(answer.splitlines()[-1]))
    # A node without work is gone as soon as it is drained.
    assert draining == {drained["node_id"]} or drained["state"] == "DEAD"
    assert head["state"] == "ALIVE"
    assert head["node_id"] not in draining
