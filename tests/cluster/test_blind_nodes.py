"""Nodes that join later and do not see the storage or the data. At the start: test_node_faults.py."""

import time
from pathlib import Path

import pytest

from tests.cluster.test_node_faults import Job, job_of, pytestmark
from tests.helpers.image_files import images
from tests.helpers.processes import until
from tests.helpers.testbed import Testbed

__all__ = ["pytestmark"]  # pytest reads it: network namespaces, and minutes

IMAGES = 40
# A worker a node of one CPU; wait_s: for the second node.
SMALL = {"data__fraction": 1, "data__shard_rows": 4, "scale__cpus_per_worker": 1, "scale__wait_s": 120}


def job_on(data: Path, **changed: object) -> list[str]:
    """The words of a job on a folder of images."""
    settings = SMALL | {"data__source": "imagefolder", "data__path": str(data)} | changed
    sizes = {"data__image_size": 28, "data__channels": 1, "data__binarize": "threshold"}
    return job_of(**settings, **sizes)  # type: ignore[arg-type]


def drivers(testbed: Testbed) -> int:
    return len(testbed.query("workers", worker_type="DRIVER", is_alive="True"))


def refused(testbed: Testbed, log: Path, *argv: str, hidden: Path) -> str:
    """What a job prints that ends in an error; hidden: from a node that joins once the job waits."""
    before = drivers(testbed)
    job = Job(testbed, log, *argv)
    until(lambda: drivers(testbed) > before, 180)
    time.sleep(5)  # the nodes that are up were asked; now it waits for one more
    testbed.add_node(hidden=hidden)
    status, out = job.end()
    assert status != 0, out
    assert "Traceback" not in out
    return out


@pytest.mark.slow
def test_a_node_that_joins_later_is_named_when_it_starts_to_work(tmp_path: Path) -> None:
    """In the stages that read the data; then in training, whose worker would write to a disk of its own."""
    data, runs = images(tmp_path / "data", IMAGES), tmp_path / "runs"
    with Testbed(count=1) as testbed:
        blind = [*job_on(data), "--storage", str(runs), "--name", "blind"]
        out = refused(testbed, tmp_path / "log", *blind, hidden=data)
        assert f"error: the data {data} cannot be read from 10.77.0.2; on several nodes give" in out
        testbed.kill_node(1)
        # Ray notices a death only after some missed health checks.
        until(lambda: {n["node_ip"]: n["state"] for n in testbed.query("nodes")}["10.77.0.2"] == "DEAD", 180)

        name = ["--storage", str(runs), "--name", "later"]
        alone = [*job_on(data, scale__num_workers=1), *name, "--stages", "bank,parse"]
        status, out = Job(testbed, tmp_path / "log", *alone).end()
        assert status == 0, out
        out = refused(testbed, tmp_path / "log", *job_on(data), *name, "--stages", "prior", hidden=runs)
        assert f"error: the storage {runs}/later cannot be read from 10.77.0.3; on several nodes give" in out
    assert not list((runs / "later" / "prior").glob("checkpoint_*"))
