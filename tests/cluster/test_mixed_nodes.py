"""A job over nodes with pretended GPUs, and without: each stage is placed right. A GPU node dies."""

from pathlib import Path

from tests.helpers.cluster_job import MARKS, Job, job_of
from tests.helpers.testbed import Size, Testbed

pytestmark = MARKS

# The GPU nodes have 1 and 2 CPUs: two workers of 1 CPU.
SIZES = (Size(1), Size(4), Size(1, 1), Size(2, 1))
WITH_GPU = (2, 3)


def test_a_job_over_mixed_nodes_is_placed_right_and_survives_a_gpu_node(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    words = job_of(prior__images=32768, scale__cpus_per_worker=None)
    with Testbed(sizes=SIZES) as testbed:
        addresses = [node.address for node in testbed.nodes]
        gpu_nodes = {addresses[number] for number in WITH_GPU}
        job = Job(testbed, tmp_path / "log", *words, "--storage", str(tmp_path), "--name", "mixed")
        job.until(lambda: list(folder.glob("prior/checkpoint_*/progress.json")))
        assert testbed.hosts("RayTrainWorker", state="ALIVE") == gpu_nodes
        assert "prior: 2 workers of 1 CPU and a GPU" in job.log.read_text()
        parsed = testbed.hosts("MapWorker")
        assert parsed - gpu_nodes, "the parse ran on nodes with GPUs only"

        testbed.kill_node(WITH_GPU[1])
        job.until(lambda: "waits for 2 workers of 1 CPU and a GPU" in job.log.read_text())
        assert "the cluster has room for 1; free: " in job.said()
        added = testbed.add_node(size=Size(3, 1))
        status, out = job.end()
        assert status == 0, out
        trained = testbed.hosts("RayTrainWorker")
    assert "prior: resumes from checkpoint_" in out
    assert trained == gpu_nodes | {testbed.nodes[added].address}
    assert (folder / "model" / "model.safetensors").exists()
