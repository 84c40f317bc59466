"""Runs trainings of a comparison, in this process or on Ray Tune, and records those that fail."""

from collections.abc import Callable, Sequence

from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import Store
from tune_spaces.comparison import Job
from tune_spaces.training_command import TrainingStopped, train
from tune_spaces.trial_results import TrialResult, write_result

# Trains jobs, in any order; each gives its run folder, or a result that says why it failed.
Train = Callable[[Store, Sequence[Job], bool], None]


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


def on_tune(at_once: int | None) -> Train:
    """Trains jobs on Ray Tune, `at_once` of them; None: one a CPU."""

    def execute(run: Store, jobs: Sequence[Job], with_scores: bool) -> None:
        if jobs:  # Ray takes seconds to import and to start
            from tune_spaces.contest_on_tune import run_jobs

            run_jobs(run, jobs, with_scores, at_once)

    return execute
