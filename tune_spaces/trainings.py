"""The trainings of a comparison, each the command `train` in a process of its own with one thread.

So its counted time is that of one core, whatever else runs, and anyone can repeat it alone. It runs without
Ray inside; Ray Tune says where. Nothing is kept of it but its run folder, which a second start resumes: so it
ends with the sweep, however that ends.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from npdraw_dist.config.load import dump
from npdraw_dist.pipeline import sample
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import FOLDERS, Store, finished
from tune_spaces import with_parent
from tune_spaces.budgets import Job
from tune_spaces.trials import TrialResult, write_result

# Trains jobs, in any order; each gives its run folder, or a result that says why it failed.
Train = Callable[[Store, Sequence[Job], bool], None]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
STOPS = [code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number)]


class TrainingStopped(RuntimeError):
    """A training was told to end. It has not failed: the next start goes on with it."""


def store_of(run: Store, job: Job) -> Store:
    """The run folder of a training in the sweep's."""
    return Store(run.filesystem, run.path(*job.path.split("/")))


def is_trained(run: Store, job: Job) -> bool:
    """Whether all stages but `sample` are done. Raises UserError if they are of another config."""
    return finished(store_of(run, job), job.experiment, "vae") is not None


def is_done(run: Store, job: Job) -> bool:
    """Whether all stages are done."""
    return is_trained(run, job) and sample.is_done(job.experiment, store_of(run, job))


def core_seconds(run: Store, job: Job) -> float:
    """The counted seconds of a core of all stages that train or prepare; not of samples and scores."""
    store = store_of(run, job)
    stages = [FOLDERS[stage] for stage in job.experiment.stage_names if stage in FOLDERS]
    return sum(float(store.read_json(stage, "manifest.json")["core_seconds"]) for stage in stages)


def valid_nll(run: Store, job: Job) -> float:
    """What trials are chosen by: the bound on validation images, nats an image."""
    return float(store_of(run, job).read_json("metrics.json")["valid/nll_iwae"])


def images_seen(run: Store, job: Job) -> int:
    """The images that a training saw: less than its budget if it ended early."""
    return int(store_of(run, job).read_json("vae", "manifest.json")["images"])


def train(run: Store, job: Job, with_scores: bool = True) -> str | None:
    """Runs or resumes a training; returns why it failed, None if it did not.

    with_scores: also the stage `sample`, on validation images. Raises TrainingStopped.
    """
    stages = [stage for stage in job.experiment.stage_names if with_scores or stage != "sample"]
    # One thread, and no Ray, even if this process is a worker of one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(dump(job.experiment))
        where = ("--storage", run.shown(job.folder), "--name", job.name)
        flags = ("--config", str(config), *where, "--stages", ",".join(stages), "--quiet")
        done = subprocess.run(
            with_parent.command("npdraw_dist.train", *flags),
            env=environment | ONE_THREAD,
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


def train_one(run: Store, job: Job, with_scores: bool) -> str:
    """Trains a job and records its failure, if it fails; returns how it ended, in a line.

    Raises TrainingStopped, on which Tune starts the training again.
    """
    reason = train(run, job, with_scores)
    if reason is not None:
        write_result(run, TrialResult(job.name, "failed", job.point, job.settings, reason=reason))
    return f"{job.path}: {reason or 'done'}"


def here(run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
    """Trains the jobs one after the other."""
    for number, job in enumerate(jobs, start=1):
        try:
            ended = train_one(run, job, with_scores)
        except TrainingStopped as stopped:
            ended = str(stopped)
        console.print(f"{number}/{len(jobs)} {ended}")
