"""Nodes that do not see the storage or the data, and one that the cloud takes back: all on one test bed."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.cluster_job import MARKS, ROOT, Job, job_of, lose
from tests.helpers.image_files import images
from tests.helpers.processes import until
from tests.helpers.testbed import Testbed

pytestmark = MARKS

IMAGES = 40


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with Testbed(count=1) as testbed:
        yield testbed


def job_on(data: Path, **changed: object) -> list[str]:
    """The words of a job on a folder of images, which waits for a second node of one CPU."""
    sizes = {"data__image_size": 28, "data__channels": 1, "data__binarize": "threshold"}
    own = {"data__source": "imagefolder", "data__path": str(data), "data__shard_rows": 4}
    return job_of(**sizes, **own, scale__wait_s=120, **changed)


def drivers(testbed: Testbed) -> int:
    return len(testbed.query("workers", worker_type="DRIVER", is_alive="True"))


def refused(bed: Testbed, log: Path, *argv: str, hidden: Path) -> tuple[str, str]:
    """The output of a job that ends in an error, and the address of a node that joins while the job waits.

    The node does not see the folder `hidden`, and is lost in the end.
    """
    before = drivers(bed)
    job = Job(bed, log, *argv)
    until(lambda: drivers(bed) > before, 180)
    time.sleep(5)  # the living nodes have been checked; now the job waits for one more
    added = bed.add_node(hidden=hidden)
    status, out = job.end()
    assert status != 0, out
    assert "Traceback" not in out
    lose(bed, added)
    return out, bed.nodes[added].address


@contextmanager
def busy_head(bed: Testbed) -> Iterator[None]:
    """Another driver holds the CPU of the head in the block, so that all work is done on other nodes."""
    script = "import ray, signal; ray.init(log_to_driver=False); Holder = type('Holder', (), {})\n"
    script += "held = ray.remote(num_cpus=1)(Holder).remote(); "
    script += "ray.get(held.__ray_ready__.remote()); print('holds', flush=True); signal.pause()"
    command = ["env", f"RAY_ADDRESS={bed.address}", sys.executable, "-c", script]
    driver = bed.popen(command, 0, subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "holds\n"
    yield
    driver.kill()
    driver.wait()


def test_a_node_that_does_not_see_the_storage_is_named(bed: Testbed, tmp_path: Path) -> None:
    added = bed.add_node(hidden=tmp_path)
    job = Job(bed, tmp_path / "log", *job_of(), "--storage", str(tmp_path), "--name", "unseen")
    status, out = job.end()
    assert status != 0
    address = bed.nodes[added].address
    assert f"error: the storage {tmp_path}/unseen cannot be read from {address}; on several" in out
    lose(bed, added)


def test_a_node_that_joins_later_and_sees_too_little_ends_the_job(bed: Testbed, tmp_path: Path) -> None:
    """First it does not see the data; then it does not see the run, and its worker would train on its own."""
    data, runs = images(tmp_path / "data", IMAGES), tmp_path / "runs"
    blind = [*job_on(data), "--storage", str(runs), "--name", "blind"]
    with busy_head(bed):  # else it may have read all images before the other node is ready
        out, address = refused(bed, tmp_path / "log", *blind, hidden=data)
    assert f"error: the data {data} cannot be read from {address}; on several nodes give" in out

    name = ["--storage", str(runs), "--name", "later"]
    alone = [*job_on(data, scale__num_workers=1), *name, "--stages", "data,bank,parse"]
    status, out = Job(bed, tmp_path / "log", *alone).end()
    assert status == 0, out
    out, address = refused(bed, tmp_path / "log", *job_on(data), *name, "--stages", "prior", hidden=runs)
    assert f"error: the storage {runs}/later cannot be read from {address}; on several nodes give" in out
    assert not list((runs / "later" / "prior").glob("checkpoint_*"))


def test_ray_drains_a_node_that_the_cloud_takes_back(bed: Testbed, tmp_path: Path) -> None:
    """The service answers on the node alone, as a cloud's does."""
    server = tmp_path / "server.py"
    server.write_text(
        "from http.server import ThreadingHTTPServer\n"
        "from tests.cluster.test_spot_notice import Metadata\n"
        "Metadata.taken = True\n"
        "ThreadingHTTPServer(('127.0.0.1', 8080), Metadata).serve_forever()\n"
    )
    # The query of Ray Train's watcher for nodes that are being drained.
    query = "import json, ray; ray.init('auto', log_to_driver=False); "
    query += "print(json.dumps(ray._private.state.state.get_draining_nodes()))"
    script = [sys.executable, str(ROOT / "cluster" / "spot_notice.py"), "--cloud", "google"]
    # Tests before may have a Ray of their own on this machine, and `auto` could take that.
    env = ["env", f"PYTHONPATH={ROOT}", f"RAY_ADDRESS={bed.address}"]
    added = bed.add_node()
    with (tmp_path / "log").open("w+") as log:
        bed.popen([*env, sys.executable, str(server)], added)
        watcher = bed.popen([*env, *script, "--metadata", "http://127.0.0.1:8080"], added, log, log)
        assert watcher.wait(120) == 0, (tmp_path / "log").read_text()
        answer = bed.popen([*env, sys.executable, "-c", query], 0, subprocess.PIPE).communicate()[0]
    nodes = {node["node_ip"]: node for node in bed.query("nodes")}
    drained, head = nodes[bed.nodes[added].address], nodes[bed.nodes[0].address]
    draining = set(json.loads(answer.splitlines()[-1]))
    # A node without work is gone as soon as it is drained.
    assert draining == {drained["node_id"]} or drained["state"] == "DEAD"
    assert head["state"] == "ALIVE"
    assert head["node_id"] not in draining
