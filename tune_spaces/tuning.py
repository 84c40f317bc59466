"""Runs a sweep on Ray Tune: sets how many trials run at once, and proposes, stops and records trials."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.distributed.failures import is_of_storage, reason_of
from npdraw_dist.distributed.resources import (
    Node,
    describe_gpus,
    living_nodes,
    local_resources,
    most_cpus,
    plan_local,
    plan_workers,
    room,
)
from npdraw_dist.pipeline.progress import console
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.landmarks import Landmarks
from npdraw_dist.training.metrics_log import read_metrics
from tune_spaces.options import Options
from tune_spaces.space import IMAGES, SCORE, Choice, Space
from tune_spaces.trial import point_of, run_trial, tune_report
from tune_spaces.trials import Plan, Trial, TrialResult, find_result, read_results, write_result

# Environment variables that are set before Tune starts.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the stages' metrics logs contain the same numbers
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box and a temporary folder even with verbose=0
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the sweep records each error and prints it in one line
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative data.path means the same as on the command line
}
# The function of a trial only waits for workers, but Tune requires a resource request for it. Part of a CPU
# could keep a worker from starting when trials fill the machine, so the function requests one byte of memory.
DRIVER: dict[str, float] = {"memory": 1}
LOOK_EVERY_S = 10.0  # how often the cluster's nodes are read; they set how many trials run at once
REDUCTION = 2  # ASHA keeps the better half at each rung


@dataclass(frozen=True)
class Allocation:
    """The number of concurrent trials, and the config of each trial's workers."""

    at_once: int
    scale: ScaleConfig

    def fits_now(self) -> int:
        """The number of trials that fit on the present nodes of the cluster; at least one."""
        gpus = self.scale.gpus_per_worker if self.scale.use_gpu else 0.0
        return max(room(living_nodes(), self.scale.cpus_per_worker or 1, gpus) // self.scale.most_workers, 1)

    def __str__(self) -> str:
        gpu = f" and {describe_gpus(self.scale.gpus_per_worker)}" if self.scale.use_gpu else ""
        workers = f"{self.scale.num_workers} worker(s) of {self.scale.cpus_per_worker} CPU(s){gpu}"
        return f"{self.at_once} at once, each {workers}"


def divide(scale: ScaleConfig, wanted: int | None, trials: int, local: bool = False) -> Allocation:
    """Divides the cluster among `wanted` concurrent trials; if None, among as many of `trials` as fit.

    Without scale.cpus_per_worker, the trials share all CPUs of the nodes on which a worker fits. local:
    divides the resources of this machine, without starting Ray. Raises UserError if fewer than `wanted`
    trials fit, or none.
    """
    smallest = scale.model_copy(update={"cpus_per_worker": scale.cpus_per_worker or 1})
    single = plan_local(smallest) if local else plan_workers(smallest)
    nodes = [Node.of(local_resources(scale))] if local else living_nodes()
    fit = max(room(nodes, single.cpus, single.gpus) // scale.most_workers, 1)
    if wanted is not None and wanted > fit:
        raise UserError(
            f"--max-concurrent-trials is {wanted}, but the cluster fits {fit} at once, each {single}"
        )
    at_once = min(wanted or fit, trials)
    cpus = scale.cpus_per_worker or max(most_cpus(nodes, at_once * scale.most_workers, single.gpus), 1)
    return Allocation(at_once, scale.model_copy(update={"cpus_per_worker": cpus, "use_gpu": single.gpu}))


def optuna_search(space: Space, seed: int, done: Sequence[TrialResult]) -> Any:
    """A search algorithm of Tune: Optuna's TPE over the space, which knows the scores of earlier trials."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    of = optuna.distributions
    domains: dict[str, Any] = {
        name: of.CategoricalDistribution(list(range(len(domain.values))))
        if isinstance(domain, Choice)
        else of.FloatDistribution(domain.low, domain.high, log=domain.log)
        for name, domain in space.fields.items()
    }
    known = [(result.point, result.score) for result in done if result.score is not None and result.point]
    return OptunaSearch(
        domains,
        metric=SCORE,
        mode="min",
        points_to_evaluate=[dict(point) for point, _ in known] or None,
        evaluated_rewards=[score for _, score in known] or None,
        seed=seed + len(done),  # after a resume the same seed would propose the known points again
    )


class RecordingASHA(ASHAScheduler):  # type: ignore[misc]
    """ASHA that calls `on_stop` for each trial that it stops, and never stops a trial that saw all `images`.

    history: trial that ended in an earlier start of the sweep -> its validations as reports to Tune.
    """

    def __init__(
        self,
        images: int,
        on_stop: Callable[[Any, dict[str, Any]], None],
        history: Mapping[str, Sequence[dict[str, float]]] | None = None,
    ) -> None:
        before_end = max(images - 1, 1)  # no rung at the end: a fully trained trial is always scored
        super().__init__(
            time_attr=IMAGES,
            metric=SCORE,
            mode="min",
            max_t=before_end,
            grace_period=min(max(images // (2 * REDUCTION), 1), before_end),
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        controller: Any = None  # ASHA does not use it
        for name, results in (history or {}).items():
            trial: Any = SimpleNamespace(trial_id=name)
            super().on_trial_add(controller, trial)
            for result in results:
                super().on_trial_result(controller, trial, result)
        self._on_stop = on_stop

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self._on_stop(trial, result)
        return str(action)


class SweepCallback(tune.Callback):  # type: ignore[misc]
    """Records trials that were stopped or died, and prints a line for each trial.

    done: the names of the trials that have a result. The callback counts them, since reading all results
    after each trial would take quadratic time. follow: adapts the number of concurrent trials to the cluster.
    """

    def __init__(
        self, plan: Plan, total: int, done: Iterable[str] = (), follow: Callable[[], None] = lambda: None
    ) -> None:
        self.plan, self.total, self.follow = plan, total, follow
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self.done = set(done)
        self.started = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_EVERY_S
            self.follow()

    def stopped(self, trial: Any, result: dict[str, Any]) -> None:
        """Records a trial that ASHA stops; called before its processes end."""
        numbers = {SCORE: result[SCORE], IMAGES: result[IMAGES]}
        reason = f"by ASHA at {result[IMAGES]:,} images"
        write_result(self.plan.run, self._trial(trial).result("stopped", numbers=numbers, reason=reason))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or RuntimeError("its process died")
        try:
            failed = self._trial(trial).result("failed", reason=reason_of(error))
        except UserError as impossible:  # Optuna proposed an impossible config
            console.print(f"a proposed trial is impossible: {impossible}")
            return
        if is_of_storage(error):
            console.print(f"{failed.trial} stopped: {failed.reason}; the same command resumes it")
            return
        write_result(self.plan.run, failed)
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        name = self._trial(trial).name
        result = find_result(self.plan.run, name)
        if result is not None:
            self.done.add(name)
            count, seconds = len(self.done), time.monotonic() - self.started
            console.print(f"{count}/{self.total} after {seconds:.0f} s: {result.line(self.plan.metric)}")

    def _trial(self, trial: Any) -> Trial:
        return self.plan.trial(point_of(trial.config))


def run_sweep(
    plan: Plan,
    todo: list[Trial] | None,
    total: int,
    allocation: Allocation,
    options: Options,
    folders: Sequence[Landmarks],
) -> None:
    """Runs the trials `todo`, each of which leaves a result; if None, Optuna proposes trials up to `total`.

    The number of concurrent trials changes with the nodes, unless --max-concurrent-trials is given. folders:
    folders that a node must see to run a trial. Returns early on an interrupt.
    """
    done = read_results(plan.run)
    images = getattr(plan.base, plan.decides.stage).images
    points, samples = dict[str, Any](), 1
    if todo is None:
        proposer = optuna_search(plan.space, plan.base.seed, done)
        search: Any = ConcurrencyLimiter(proposer, max_concurrent=allocation.at_once)
        samples = total - len(done)
    else:
        search = BasicVariantGenerator(max_concurrent=allocation.at_once)
        points = {"point": tune.grid_search([trial.point for trial in todo])}

    def follow() -> None:
        search.max_concurrent = options.max_concurrent_trials or allocation.fits_now()

    callback = SweepCallback(plan, total, (result.trial for result in done), follow)
    asha = None
    if options.scheduler == "asha":
        asha = RecordingASHA(images, callback.stopped, _history(plan, done))
    function: Any = tune.with_parameters(run_trial, plan=plan, folders=tuple(folders))
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:  # for Tune's own state, which no later start uses
        tune.Tuner(
            tune.with_resources(function, DRIVER),
            param_space=points,
            tune_config=tune.TuneConfig(
                trial_dirname_creator=lambda trial: str(trial.trial_id),
                scheduler=asha,
                search_alg=search,
                num_samples=samples,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[callback],
                verbose=0,
                log_to_file=False,
                # A trial whose process died with its node is resumed. A trial with a recorded failure ends.
                failure_config=tune.FailureConfig(max_failures=plan.base.scale.max_failures),
            ),
        ).fit()


def _history(plan: Plan, done: Sequence[TrialResult]) -> dict[str, list[dict[str, float]]]:
    """Trial -> its validations as reports to Tune, from the metrics that the trial wrote."""
    metric, found = plan.decides, dict[str, list[dict[str, float]]]()
    for result in done:
        store = plan.cache.trial_store(plan.trial(result.point).experiment, result.trial)
        rows = read_metrics(store.filesystem, store.path(metric.stage))
        found[result.trial] = [tune_report(row, metric) for row in rows]
    return found
