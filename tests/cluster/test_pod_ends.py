"""Kubernetes ends a pod on which a worker trains: first its `preStop` runs, as raycluster.yaml has it."""

import sys
from pathlib import Path

import yaml

from tests.helpers.cluster_job import MARKS, ROOT, Job, job_of, workers
from tests.helpers.testbed import Testbed

pytestmark = MARKS

IMAGES = 4096000  # never reached
LIMIT_S = 20  # in place of the file's, for a shorter test


def pre_stop(bed: Testbed) -> list[str]:
    """The command of the workers' pods, with this machine's paths and a shorter limit."""
    cluster = yaml.safe_load((ROOT / "cluster" / "raycluster.yaml").read_text())["spec"]
    (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    python, script, flag, _ = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, flag) == ("python", "--now")
    command = [sys.executable, str(ROOT / "cluster" / Path(script).name), flag, str(LIMIT_S)]
    return ["env", f"PYTHONPATH={ROOT}", f"RAY_ADDRESS={bed.address}", *command]


def test_a_run_saves_at_once_and_goes_on_without_the_pod(tmp_path: Path) -> None:
    """Without a notice nothing would be saved yet, and a lost worker would end the job."""
    words = job_of(prior__images=IMAGES, train__eval_every_images=IMAGES, scale__num_workers="1:2")
    words += ["--scale.max_failures", "0", "--stages", "data,bank,parse,prior"]
    with Testbed(count=2) as bed:
        job = Job(bed, tmp_path / "log", *words, "--storage", str(tmp_path), "--name", "pod")
        job.until(lambda: sorted(workers(bed).values()) == [0, 1] and "prior: started" in job.said())
        hook = bed.popen(pre_stop(bed), 1)
        saved = tmp_path / "pod" / "prior"
        job.until(lambda: list(saved.glob("checkpoint_*/progress.json")))
        assert hook.wait(LIMIT_S + 60) == 0
        bed.kill_node(1)
        job.until(lambda: "prior: resumes from checkpoint_" in job.said() and workers(bed))
        assert set(workers(bed).values()) == {0}
        assert "about to be taken away; a checkpoint is saved" in job.said()
        job.stop()
