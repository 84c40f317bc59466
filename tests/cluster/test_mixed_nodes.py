"""A job uses the nodes with pretended GPUs, which join late, and survives the death of one."""

import time
from pathlib import Path

from tests.helpers.cluster_job import MARKS, Job, job_of
from tests.helpers.testbed import Size, Testbed

pytestmark = MARKS

SIZES = (Size(1), Size(4))
LATER = (Size(1, 1), Size(2, 1))  # two workers of 1 CPU
LATE_S = 60.0


def test_a_job_waits_for_gpus_is_placed_right_and_survives_the_loss_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    own = ["--scale.use_gpu", "--storage", str(tmp_path), "--name", "mixed"]

    def words(wait_s: int) -> list[str]:
        return job_of(prior__images=32768, scale__cpus_per_worker=None, scale__wait_s=wait_s) + own

    with Testbed(sizes=SIZES) as testbed:
        refused = Job(testbed, tmp_path / "refused", *words(5))
        assert refused.end()[0] != 0
        assert "2 workers of 1 CPU and a GPU, and has room for 0; nodes: " in refused.said()

        job = Job(testbed, tmp_path / "log", *words(600))
        waits = "waits for nodes (0 of 600 s): the cluster needs room for 2 workers of 1 CPU and a GPU"
        job.until(lambda: waits in job.said())
        time.sleep(LATE_S)
        assert not list(folder.glob("prior/checkpoint_*")), "it trains on CPUs"
        with_gpu = [testbed.add_node(size=size) for size in LATER]
        gpu_nodes = {testbed.nodes[number].address for number in with_gpu}
        job.until(lambda: list(folder.glob("prior/checkpoint_*/progress.json")))
        assert testbed.hosts("RayTrainWorker", state="ALIVE") == gpu_nodes
        assert "prior: 2 workers of 1 CPU and a GPU" in job.said()

        testbed.kill_node(with_gpu[1])
        job.until(lambda: "waits for 2 workers of 1 CPU and a GPU" in job.said())
        added = testbed.add_node(size=Size(3, 1))
        status, out = job.end()
        assert status == 0, out
        trained = testbed.hosts("RayTrainWorker")
    assert "prior: resumes from checkpoint_" in out
    assert trained == gpu_nodes | {testbed.nodes[added].address}
    assert (folder / "model" / "model.safetensors").exists()
