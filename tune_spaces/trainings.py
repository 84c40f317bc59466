"""Runs the trainings of a comparison. Each is the command `train` in a process of its own, with one thread.

The counted time is therefore the CPU time of one core, whatever else runs, and anyone can repeat a training.
Ray chooses the node of a training, but the training itself does not use Ray. A training leaves only its run
folder, which a second start resumes. Its process ends when the sweep ends, even if the sweep is killed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyarrow import fs

from npdraw_dist.config.load import dump
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.pipeline import sample
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, Store, finished
from npdraw_dist.system.errors import TRY_AGAIN
from npdraw_dist.system.landmarks import Landmarks
from tune_spaces.budgets import JOB_FOLDERS, Job
from tune_spaces.trials import TrialResult, write_result

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Exit statuses of a training that a signal (caught or not) or its storage stopped; it did not fail itself.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STOPS = (*(code for number in SIGNALS for code in (-number, 128 + number)), TRY_AGAIN)
# Ends a command when its parent ends; does not start it if the parent, whose id follows, has ended already.
GUARD = ("setpriv", "--pdeathsig", "TERM", "sh", "-c", '[ $PPID = "$0" ] || exit 143; exec "$@"')


class TrainingStopped(RuntimeError):
    """A training was interrupted or killed, or its storage failed; the next start resumes it."""


# A function that trains jobs in any order; each leaves its run folder, or a result that states why it failed.
# The last argument states whether the stage `sample` runs too, on validation images.
Train = Callable[[Store, Sequence[Job], bool], None]


def store_of(run: Store, job: Job) -> Store:
    """The run folder of a training, inside the folder of the sweep."""
    return Store(run.filesystem, run.path(job.folder, job.name))


def runs_in(run: Store) -> list[Store]:
    """The run folders of all trainings that have read their images."""
    selectors = [fs.FileSelector(run.path(folder), allow_not_found=True) for folder in JOB_FOLDERS]
    infos = [info for selector in selectors for info in run.filesystem.get_file_info(selector)]
    stores = [Store(run.filesystem, info.path) for info in infos]
    return [store for store in stores if store.has(CONFIG) and store.has("data", MANIFEST)]


def is_trained(run: Store, job: Job, with_scores: bool = False) -> bool:
    """Whether a job is trained and, with_scores, `sample` is done. Raises UserError if the config differs."""
    store, own = store_of(run, job), job.experiment
    if not store.has(CONFIG) or finished(store, own, "vae") is None:
        return False
    return not with_scores or sample.done(own, store) is not None


def core_seconds(run: Store, job: Job) -> float:
    """The counted time of a training: the core-seconds of all stages that prepare or train.

    Validation, pictures, checkpoints, samples and scores are not counted: their cost does not depend on the
    kind of model, and a short training has as many validations as a long one.
    """
    store = store_of(run, job)
    stages = [FOLDERS[stage] for stage in job.experiment.stage_names if stage in FOLDERS]
    manifests = [store.read_json(stage, "manifest.json") for stage in stages]
    return sum(float(m["core_seconds"]) - m.get("validation_core_seconds", 0.0) for m in manifests)


def valid_nll(run: Store, job: Job) -> float:
    """The number that ranks trials: the IWAE bound on validation images, in nats per image."""
    return float(store_of(run, job).metrics()["valid/nll_iwae"])


def images_seen(run: Store, job: Job) -> int:
    """The number of images that a training saw: less than its budget if it ended early."""
    return int(store_of(run, job).read_json("vae", "manifest.json")["images"])


def tied(*command: str) -> list[str]:
    """The command, changed so that it gets SIGTERM when the thread that starts it ends or is killed.

    Without util-linux's setpriv the command is not changed.
    """
    return [*GUARD, str(os.getpid()), *command] if shutil.which(GUARD[0]) else [*command]


def train(run: Store, job: Job, with_scores: bool) -> str:
    """Runs or resumes a training, and records a failure; returns a line to print. Raises TrainingStopped."""
    stages = [stage for stage in job.experiment.stage_names if with_scores or stage != "sample"]
    # Without these variables the training does not join Ray, even if this process is a worker of Ray.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(dump(job.experiment))
        where = ("--config", str(config), "--storage", run.shown(job.folder), "--name", job.name)
        done = subprocess.run(
            tied(sys.executable, "-m", "npdraw_dist.train", *where, "--stages", ",".join(stages), "--quiet"),
            env=environment | ONE_THREAD,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return f"{job.path}: done"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"
    if done.returncode in STOPS:
        why = reason if done.returncode == TRY_AGAIN else f"exit status {done.returncode}"
        raise TrainingStopped(f"{job.path}: stopped ({why})")
    write_result(run, TrialResult(job.name, "failed", job.point, job.settings, reason=reason))
    return f"{job.path}: {reason}"


def one_by_one(run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
    """Trains the jobs one after the other, without Ray."""
    for number, job in enumerate(jobs, start=1):
        try:
            ended = train(run, job, with_scores)
        except TrainingStopped as stopped:
            ended = str(stopped)
        console.print(f"{number}/{len(jobs)} {ended}", markup=False)


def on_ray(run: Store, jobs: Sequence[Job], with_scores: bool, at_once: int | None) -> None:
    """Trains each job on one CPU of the cluster, at most `at_once` at a time; if None, one on each CPU.

    A training whose process died, for example with its node, is resumed up to scale.max_failures times.
    """
    # Ray takes seconds to import and to start.
    import ray

    from npdraw_dist.distributed.failures import reason_of
    from npdraw_dist.distributed.nodes import require_shared
    from npdraw_dist.distributed.start import MANY_PROCESSES, start_ray

    os.environ.update(MANY_PROCESSES)
    scale = jobs[0].experiment.scale
    start_ray(scale.model_copy(update={"num_workers": 1}))
    folders = run.landmarks()
    require_shared(folders)
    console.print(f"{len(jobs)} trainings in {run.shown(jobs[0].folder)}")
    retries: dict[str, Any] = {
        "max_retries": scale.max_failures,
        "retry_exceptions": [TrainingStopped, OSError],
    }
    task: Any = ray.remote(num_cpus=1, **retries)(_train_on_node)
    waiting, running, ended = list(jobs), list[Any](), 0
    while waiting or running:
        free = len(jobs) if at_once is None else at_once - len(running)
        running += [task.remote(run, job, with_scores, folders) for job in waiting[:free]]
        del waiting[:free]
        (done,), running = ray.wait(running)
        ended += 1
        try:
            line = ray.get(done)
        except ray.exceptions.RayError as error:
            line = reason_of(error)
        console.print(f"{ended}/{len(jobs)} {line}", markup=False)


def _train_on_node(run: Store, job: Job, with_scores: bool, folders: Sequence[Landmarks]) -> str:
    from npdraw_dist.distributed.nodes import require_on_this_node

    require_on_this_node(folders)
    return train(run, job, with_scores)
