"""A training of a comparison, as the command `train` in a process of its own with one thread.

So its counted time is that of one core, whatever else runs, and anyone can repeat it alone. It runs without
Ray inside; Ray Tune says where. Nothing is kept of it but its run folder, which a second start resumes: so it
ends with the sweep, however that ends.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from npdraw_dist.config.load import dump
from npdraw_dist.pipeline.store import FOLDERS, Store, finished
from tune_spaces import with_parent
from tune_spaces.comparison import Job

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
STOPS = [code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number)]


class TrainingStopped(RuntimeError):
    """A training was told to end. It has not failed: the next start goes on with it."""


def store_of(run: Store, job: Job) -> Store:
    """The run folder of a training in the sweep's."""
    return Store(run.filesystem, run.path(*job.path.split("/")))


def is_trained(run: Store, job: Job) -> bool:
    """Whether all stages but `sample` are done. Raises UserError if they are of another config."""
    store, stage = store_of(run, job), "vae"
    return finished(store, job.experiment, stage) is not None


def core_seconds(run: Store, job: Job) -> float:
    """The counted seconds of a core of all stages that train or prepare; not of samples and scores."""
    store = store_of(run, job)
    stages = [FOLDERS[stage] for stage in job.experiment.stage_names if stage in FOLDERS]
    return sum(float(store.read_json(stage, "manifest.json")["core_seconds"]) for stage in stages)


def train(run: Store, job: Job, with_scores: bool = True) -> str | None:
    """Runs or resumes a training; returns why it failed, None if it did not.

    with_scores: also the stage `sample`, on validation images. Raises TrainingStopped.
    """
    stages = [stage for stage in job.experiment.stage_names if with_scores or stage != "sample"]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(dump(job.experiment))
        where = ("--storage", run.shown(job.folder), "--name", job.name)
        flags = ("--config", str(config), *where, "--stages", ",".join(stages), "--quiet")
        done = subprocess.run(
            with_parent.command("npdraw_dist.train", *flags),
            env=_environment(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return None
    if done.returncode in STOPS:  # such as by Ray, where the sweep ends or its node is taken away
        raise TrainingStopped(f"{job.path}: stopped")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Of the training: one thread, and no Ray, even if this process is a worker of one."""
    return {name: value for name, value in own.items() if not name.startswith("RAY_")} | ONE_THREAD
