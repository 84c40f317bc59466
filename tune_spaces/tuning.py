"""The sweep on Ray Tune: early stopping, and the results of trials that stop or die."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.pipeline.progress import console
from npdraw_dist.training.failures import reason_of
from npdraw_dist.training.resources import start_bookkeeper
from tune_spaces.optuna_search import optuna_search
from tune_spaces.plan import Plan, Trial
from tune_spaces.selection import IMAGES, SCORE
from tune_spaces.shared_stages import Leases
from tune_spaces.trial import point_of, run_trial
from tune_spaces.trial_results import find_result, read_results, write_result

# Set before Tune starts.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the results and the stages' metrics logs say all of it
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints a box and a temporary folder even with verbose=0
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # reasons are recorded and printed in a line
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative data.path means the same as on the command line
}
# A trial's driver function only waits for workers. A part of a CPU would keep one of them from starting when
# trials fill the machine, and Tune demands some resource: one byte of memory.
DRIVER: dict[str, float] = {"memory": 1}
REDUCTION = 2  # ASHA keeps the better half at each rung


@dataclass(frozen=True)
class Execution:
    """How a sweep of `total` trials runs: at once, with ASHA or to the end, for how many seconds at most."""

    total: int
    at_once: int
    asha: bool = True
    time_budget_s: float | None = None


class RecordingASHA(ASHAScheduler):  # type: ignore[misc]
    """ASHA that tells `on_stop` what it stops; it never stops a trial at the end of its `images`."""

    def __init__(self, images: int, on_stop: Callable[[Any, dict[str, Any]], None]) -> None:
        before_end = max(images - 1, 1)  # no rung at the end: the numbers of a finished trial come after it
        super().__init__(
            time_attr=IMAGES,
            metric=SCORE,
            mode="min",
            max_t=before_end,
            grace_period=min(max(images // (2 * REDUCTION), 1), before_end),
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        self._on_stop = on_stop

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self._on_stop(trial, result)
        return str(action)


class SweepCallback(tune.Callback):  # type: ignore[misc]
    """Records trials that were stopped or died, frees their leases, and prints a line for each trial.

    done: the names of the trials that have a result. They are counted here, since to read all results at the
    end of each trial takes a time that grows with their square.
    """

    def __init__(self, plan: Plan, leases: Any, total: int, done: Iterable[str] = ()) -> None:
        self.plan, self.leases, self.total = plan, leases, total
        self.done = set(done)
        self.started = time.monotonic()

    def stopped(self, trial: Any, result: dict[str, Any]) -> None:
        """ASHA calls this before the trial's processes are ended."""
        numbers = {SCORE: result[SCORE], IMAGES: result[IMAGES]}
        reason = f"by ASHA at {result[IMAGES]:,} images"
        write_result(self.plan.run, self._trial(trial).result("stopped", numbers, result[SCORE], reason))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or RuntimeError("its process died")
        try:
            failed = self._trial(trial).result("failed", reason=reason_of(error))
        except UserError as impossible:  # Optuna proposed a config that is not possible
            console.print(f"no trial: {impossible}")
            return
        write_result(self.plan.run, failed)
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        name = self._trial(trial).name
        ray.get(self.leases.release_all.remote(name))
        result = find_result(self.plan.run, name)
        if result is not None:
            self.done.add(name)
            count, seconds = len(self.done), time.monotonic() - self.started
            console.print(f"{count}/{self.total} after {seconds:.0f} s: {result.line(self.plan.metric)}")

    def _trial(self, trial: Any) -> Trial:
        return self.plan.trial(point_of(trial.config))


def run_sweep(
    plan: Plan, todo: list[Trial] | None, execution: Execution, folders: Sequence[Landmarks] = ()
) -> None:
    """Runs the trials `todo` (None: Optuna proposes what is missing of the total); each leaves a result.

    folders: what a node has to see to run a trial.
    Returns early when the time is up or on an interrupt.
    """
    os.environ.update(ENVIRONMENT)
    done = read_results(plan.run)
    images = getattr(plan.base, plan.selection.stage).images
    points: dict[str, Any] = {}
    if todo is not None:
        points = {"point": tune.grid_search([trial.point for trial in todo])}
    with tempfile.TemporaryDirectory() as folder:  # for Tune's own state and the leases; ours is the results
        leases = start_bookkeeper(Leases, str(Path(folder) / "leases.json"))
        callback = SweepCallback(plan, leases, execution.total, (result.trial for result in done))
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, plan=plan, leases=leases, folders=tuple(folders)), DRIVER
            ),
            param_space=points,
            tune_config=tune.TuneConfig(
                scheduler=RecordingASHA(images, callback.stopped) if execution.asha else None,
                search_alg=None if todo is not None else optuna_search(plan.space, plan.base.seed, done),
                num_samples=1 if todo is not None else execution.total - len(done),
                max_concurrent_trials=execution.at_once,
                time_budget_s=execution.time_budget_s,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[callback],
                verbose=0,
                log_to_file=False,
                # A trial whose process died with its node resumes. One that recorded a failure ends at once.
                failure_config=tune.FailureConfig(max_failures=plan.base.scale.max_failures),
            ),
        ).fit()
