"""The trainings of a comparison, each the command `train` in a process of its own with one thread.

So its counted time is that of one core, whatever else runs, and anyone can repeat it alone. It runs without
Ray inside; Ray says where. Nothing is kept of it but its run folder, which a second start resumes: so it ends
with the sweep, however that ends.
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
from npdraw_dist.core.errors import TRY_AGAIN
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.pipeline import sample
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import CONFIG, FOLDERS, Store, finished
from tune_spaces.budgets import JOB_FOLDERS, Job
from tune_spaces.trials import TrialResult, write_result

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Statuses of a training that has not failed. Some signals are caught and become a status.
TOLD = [code for told in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) for code in (-told, 128 + told)]
STOPS = (*TOLD, TRY_AGAIN)
# Begins only if the process with the id that follows is still the parent.
GUARD = ("setpriv", "--pdeathsig", "TERM", "sh", "-c", '[ $PPID = "$0" ] || exit 143; exec "$@"')


class TrainingStopped(RuntimeError):
    """A training was told to end, was killed, or its storage failed.

    The trial has not failed: the next start goes on with it.
    """


# Trains jobs, in any order; each leaves its run folder, or a result that says why it failed. bool: with the
# stage `sample`, on validation images.
Train = Callable[[Store, Sequence[Job], bool], None]


def store_of(run: Store, job: Job) -> Store:
    """The run folder of a training in the sweep's."""
    return Store(run.filesystem, run.path(job.folder, job.name))


def runs_in(run: Store) -> list[Store]:
    """The run folders of all trainings that have read their images."""
    found = list[Store]()
    for folder in JOB_FOLDERS:
        here = fs.FileSelector(run.path(folder), allow_not_found=True)
        found += [Store(run.filesystem, info.path) for info in run.filesystem.get_file_info(here)]
    return [store for store in found if store.has(CONFIG) and store.has("data", MANIFEST)]


def is_trained(run: Store, job: Job, with_scores: bool = False) -> bool:
    """Whether its stages are done, but for `sample` without scores. Raises UserError on another config."""
    store = store_of(run, job)
    if not store.has(CONFIG):
        return False
    own = job.experiment
    return finished(store, own, "vae") is not None and (
        not with_scores or sample.done(own, store) is not None
    )


def core_seconds(run: Store, job: Job) -> float:
    """The counted seconds of a core: all that trains or prepares.

    Validation, pictures, checkpoints, samples and scores are not counted: what they cost says nothing of a
    kind of model, and a short training has as many validations as a long one.
    """
    store = store_of(run, job)
    stages = [FOLDERS[stage] for stage in job.experiment.stage_names if stage in FOLDERS]
    manifests = [store.read_json(stage, "manifest.json") for stage in stages]
    return sum(float(m["core_seconds"]) - m.get("validation_core_seconds", 0.0) for m in manifests)


def valid_nll(run: Store, job: Job) -> float:
    """What trials are chosen by: the bound on validation images, nats an image."""
    return float(store_of(run, job).metrics()["valid/nll_iwae"])


def images_seen(run: Store, job: Job) -> int:
    """The images that a training saw: less than its budget if it ended early."""
    return int(store_of(run, job).read_json("vae", "manifest.json")["images"])


def tied(*command: str) -> list[str]:
    """The command as a child of this process, which ends when the thread that starts it does, even if killed.

    It gets SIGTERM then. Without util-linux's setpriv nothing is sent.
    """
    return [*GUARD, str(os.getpid()), *command] if shutil.which(GUARD[0]) else [*command]


def train(run: Store, job: Job, with_scores: bool) -> str:
    """Runs or resumes a training, and records its failure; returns how it ended, in a line.

    Raises TrainingStopped.
    """
    stages = [stage for stage in job.experiment.stage_names if with_scores or stage != "sample"]
    # One thread, and no Ray, even if this process is a worker of one.
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
    # By Ray, where the sweep ends or its node is taken away, or by a system that is out of memory.
    if done.returncode in STOPS:
        why = reason if done.returncode == TRY_AGAIN else f"exit status {done.returncode}"
        raise TrainingStopped(f"{job.path}: stopped ({why})")
    write_result(run, TrialResult(job.name, "failed", job.point, job.settings, reason=reason))
    return f"{job.path}: {reason}"


def here(run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
    """Trains the jobs one after the other."""
    for number, job in enumerate(jobs, start=1):
        try:
            ended = train(run, job, with_scores)
        except TrainingStopped as stopped:
            ended = str(stopped)
        console.print(f"{number}/{len(jobs)} {ended}", markup=False)


def on_ray(run: Store, jobs: Sequence[Job], with_scores: bool, at_once: int | None) -> None:
    """Trains the jobs on a CPU of the cluster each, at most `at_once` of them; None: one a CPU.

    A training whose process died with its node resumes. One that recorded a failure has ended.
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
    task: Any = ray.remote(num_cpus=1, **retries)(_train_there)
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


def _train_there(run: Store, job: Job, with_scores: bool, folders: Sequence[Landmarks]) -> str:
    from npdraw_dist.distributed.nodes import require_here

    require_here(folders)
    return train(run, job, with_scores)
