"""The trainings of a comparison on Ray Tune: one CPU each, as many at once as the cluster has."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training.environment import MANY_PROCESSES
from npdraw_dist.training.launch import start_ray
from npdraw_dist.training.nodes import require_here, require_shared
from tune_spaces.comparison import Job
from tune_spaces.contest_trainings import train_one
from tune_spaces.tuning import ENVIRONMENT


class _Lines(tune.Callback):  # type: ignore[misc]
    """A line for each training that ended."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        console.print(f"{self.done}/{self.total} {trial.last_result.get('ended', 'done')}", markup=False)


def _trial(
    config: Mapping[str, Any],
    run: Store,
    jobs: Mapping[str, Job],
    with_scores: bool,
    folders: Sequence[Landmarks],
) -> None:
    """The function of a Tune trial: it waits for the command in a process of its own."""
    require_here(folders)
    tune.report({"ended": train_one(run, jobs[config["job"]], with_scores)})


def run_jobs(run: Store, jobs: Sequence[Job], with_scores: bool, at_once: int | None) -> None:
    """Runs all jobs; each leaves its run folder, or the result of a failure. at_once: None: one a CPU."""
    os.environ.update({**ENVIRONMENT, **MANY_PROCESSES})
    start_ray(jobs[0].experiment.scale.model_copy(update={"num_workers": 1}))
    folders = tuple(run.landmarks())
    require_shared(folders)
    by_path = {job.path: job for job in jobs}
    console.print(f"{len(jobs)} trainings in {run.shown(jobs[0].folder)}")
    with tempfile.TemporaryDirectory() as folder:  # for Tune's own state; ours is the run folders
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, run=run, jobs=by_path, with_scores=with_scores, folders=folders),
                {"cpu": 1},
            ),
            param_space={"job": tune.grid_search(list(by_path))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once, trial_dirname_creator=lambda trial: str(trial.trial_id)
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[_Lines(len(jobs))],
                verbose=0,
                log_to_file=False,
                failure_config=tune.FailureConfig(max_failures=jobs[0].experiment.scale.max_failures),
            ),
        ).fit()
