"""A node runs out of disk or memory, nodes come and go, and a job loses its head, all on one test bed.

Each node has a small disk of its own and reads its memory from a file, so that both can run out on one node.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from npdraw_dist.training.metrics_log import read_metrics
from tests.helpers.cluster_job import MARKS, SHARDS, Job, job_of, require_calm, workers
from tests.helpers.testbed import Testbed

pytestmark = MARKS

JOB = job_of()
# One worker, so that it is known which node stages the checkpoints; long enough for a fault before its end.
ALONE_IMAGES, ALONE_EVERY = 98304, 4096
ALONE = job_of(prior__images=ALONE_IMAGES, train__eval_every_images=ALONE_EVERY)
ALONE += ["--scale.num_workers", "1", "--scale.max_failures", "0", "--stages", "data,bank,parse,prior"]
ELASTIC_IMAGES, ELASTIC_EVERY = 4096000, 4096  # never reached


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def bed(folder: Path) -> Iterator[Testbed]:
    (folder / "tmp").mkdir()
    for node in range(20):
        (folder / f"meminfo{node}").write_text(Path("/proc/meminfo").read_text())
    steps = [
        f"mount -t tmpfs -o size=32m npdraw {folder}/tmp",
        f"export TMPDIR={folder}/tmp",
        f"mount --bind {folder}/meminfo$NODE /proc/meminfo",
    ]
    testbed = Testbed(count=2, prepare=" && ".join(steps))
    # Ray kills the newest worker, and no other before the memory is given back.
    testbed.env |= {"RAY_memory_monitor_refresh_ms": "1000", "RAY_max_kill_memory_buffer_bytes": "0"}
    with testbed:
        yield testbed


def ensure(testbed: Testbed, count: int) -> None:
    """Adds nodes until `count` are alive: an earlier test may have lost some."""
    while sum(bool(node.running()) for node in testbed.nodes) < count:
        testbed.add_node()


def start(testbed: Testbed, folder: Path, name: str, words: list[str]) -> Job:
    return Job(testbed, folder / f"{name}.log", *words, "--storage", str(folder), "--name", name)


def rows(run: Path) -> list[int]:
    """images_seen of the rows of the prior's metrics; [] before the first."""
    return [int(row["images_seen"]) for row in read_metrics(fs.LocalFileSystem(), str(run / "prior"))]


def error_of(out: str) -> str:
    assert "Traceback" not in out
    (line,) = {line for line in out.splitlines() if line.startswith("error: ")}  # the client repeats it
    return line


def test_a_node_runs_out_of_disk_then_of_memory(bed: Testbed, folder: Path) -> None:
    """Each ends the job in one line that names the node, and the same command resumes."""
    ensure(bed, 2)
    run = folder / "alone"
    job = start(bed, folder, "alone", ALONE)
    job.until(lambda: rows(run) and len(workers(bed)) == 1)
    ((pid, node),) = workers(bed).items()
    filler = Path(f"/proc/{pid}/root{folder}/tmp/filler")  # as the worker sees the disk
    file = filler.open("wb", buffering=0)
    while job.process.poll() is None:  # again and again: a staged checkpoint that goes leaves space
        with contextlib.suppress(OSError):  # no space left
            while True:
                file.write(bytes(1 << 16))
        time.sleep(0.01)
    status, out = job.end()
    os.ftruncate(file.fileno(), 0)
    file.close()
    assert status != 0
    line = error_of(out)
    assert line.startswith("error: stage prior stopped because its storage failed (cannot write ")
    assert f"No space left on device (os error 28), on node {bed.nodes[node].address})" in line

    before = len(rows(run))
    job = start(bed, folder, "alone", ALONE)
    job.until(lambda: len(rows(run)) > before)
    job.until(lambda: "prior: resumes from checkpoint_" in job.log.read_text())  # lines come later
    job.until(lambda: len(workers(bed)) == 1)
    ((pid, node),) = workers(bed).items()
    memory = folder / f"meminfo{node}"
    enough = memory.read_text()
    available = int(enough.split()[1]) * 45 // 1000  # of the total; Ray kills from 5% down
    little = re.sub(r"MemAvailable: +\d+", f"MemAvailable: {available}", enough)
    assert little != enough
    memory.write_text(little)  # in place: the node sees this file
    job.until(lambda: pid not in workers(bed))
    memory.write_text(enough)
    status, out = job.end()
    assert status != 0
    line = error_of(out)
    assert "stage prior stopped: OutOfMemoryError: " in line
    assert f"IP: {bed.nodes[node].address}" in line

    status, out = start(bed, folder, "alone", ALONE).end()
    assert status == 0, out
    assert "prior: resumes from checkpoint_" in out
    assert rows(run) == list(range(ALONE_EVERY, ALONE_IMAGES + 1, ALONE_EVERY))


def test_nodes_come_and_go_under_an_elastic_run(bed: Testbed, folder: Path) -> None:
    """Two workers, one, two: each row of metrics is there once. Then the job is stopped."""
    ensure(bed, 2)
    run = folder / "elastic"
    elastic = job_of(prior__images=ELASTIC_IMAGES, train__eval_every_images=ELASTIC_EVERY)
    elastic += ["--scale.num_workers", "1:2", "--stages", "data,bank,parse,prior"]
    job = start(bed, folder, "elastic", elastic)

    def runs_with(count: int, after: int) -> None:
        job.until(lambda: len(rows(run)) > after and len(workers(bed)) == count)

    try:
        runs_with(2, 0)
        lost = next(number for number in workers(bed).values() if number > 0)
        bed.kill_node(lost)
        runs_with(1, len(rows(run)) + 1)
        bed.add_node()
        job.until(lambda: job.log.read_text().count("prior: resumes from checkpoint_") == 2)
        runs_with(2, len(rows(run)))
        out, seen = job.log.read_text(), rows(run)
    finally:  # it would train beside the tests after it
        job.stop()
    assert out.count("prior: resumes from checkpoint_") == 2
    assert "workers restart: their number changes from 1 to 2" in out
    assert seen == list(range(ELASTIC_EVERY, seen[-1] + 1, ELASTIC_EVERY))


def test_a_sweep_loses_a_node(bed: Testbed, folder: Path) -> None:
    """The node runs a trial and is not the head. Every trial finishes."""
    ensure(bed, 3)
    words = ["tune_spaces.sweep", "--space", "smoke", "--scheduler", "none"]
    job = Job(bed, folder / "sweep.log", *words, "--storage", str(folder), "--name", "sweep")

    def victim() -> int:
        """0 until a trial has trained, and while only the head works."""
        if not list((folder / "sweep").rglob("metrics.jsonl")):
            return 0
        found = [*workers(bed, "ImplicitFunc").values(), *workers(bed).values()]
        return next((number for number in found if number), 0)

    bed.kill_node(job.until(victim))
    status, out = job.end()
    assert status == 0, out
    results = pq.read_table(folder / "sweep" / "results.parquet").to_pylist()
    assert [result["status"] for result in results] == ["finished", "finished"], out


def test_a_job_loses_nodes_and_then_its_head(bed: Testbed, folder: Path) -> None:
    """Nodes die in the parse and in the training, which continues on the head and the last node.

    Submitted again, the job ends with the bytes of an undisturbed run.
    """
    ensure(bed, 4)
    run = folder / "lost"
    job = start(bed, folder, "lost", JOB)
    done = run / "parses" / ".done"
    job.until(lambda: done.is_dir() and len(list(done.iterdir())) >= 3)
    assert len(list(done.iterdir())) < SHARDS
    bed.kill_node(next(number for number, node in enumerate(bed.nodes) if number and node.running()))

    job.until(lambda: list(run.glob("prior/checkpoint_*/progress.json")))
    bed.kill_node(job.until(lambda: max(workers(bed).values(), default=0)))
    seen = len(rows(run))
    job.until(lambda: "prior: resumes from checkpoint_" in job.log.read_text() and len(rows(run)) > seen + 1)
    bed.kill_node(0)
    assert job.process.wait() != 0
    assert not (run / "prior" / "manifest.json").exists(), "the prior was done before its head died"

    bed.start_again()
    status, out = start(bed, folder, "lost", JOB).end()
    assert status == 0, out
    assert "prior: resumes from checkpoint_" in out
    require_calm(run, JOB)
