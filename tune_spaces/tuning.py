"""The sweep on Ray Tune: how many trials at once, what stops them early, what proposes them."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.progress import console
from npdraw_dist.training.failures import reason_of
from npdraw_dist.training.resources import even_cpus, plan_workers
from tune_spaces.cache import Leases
from tune_spaces.records import (
    IMAGES,
    METRICS,
    SCORE,
    Record,
    find_record,
    read_records,
    write_record,
)
from tune_spaces.space import Choice, Point, Space
from tune_spaces.trial import Plan, Trial, point_of, run_trial

# Set before Tune starts.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the records and the stages' journals say it all
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints a box and a temporary folder even where it is to be silent
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # reasons are recorded and printed in a line
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative data.path means what it means on the command line
}
# A trial's driver function waits for workers. A share of a CPU would keep one of them from starting
# where trials fill the machine, and Tune wants some resource: one byte of memory.
DRIVER: dict[str, float] = {"memory": 1}
REDUCTION = 2  # ASHA keeps the better half at each rung


@dataclass(frozen=True)
class Share:
    """How many trials run at once, and the config of the workers of each."""

    trials: int
    scale: ScaleConfig


def share_cluster(scale: ScaleConfig, wanted: int | None, trials: int) -> Share:
    """Divides the cluster among at most `wanted` of `trials` trials at once; all that fit if None.

    Where scale.cpus_per_worker is not given, the trials at once share all CPUs. Raises UserError where
    not even one fits.
    """
    single = plan_workers(scale.model_copy(update={"cpus_per_worker": scale.cpus_per_worker or 1}))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = scale.most_workers
    slots = sum(int(node.get("CPU", 0)) // single.cpus for node in nodes)
    if single.gpu:
        slots = min(slots, sum(int(node.get("GPU", 0)) for node in nodes))
    fit = max(slots // count, 1)
    if wanted is not None and wanted > fit:
        raise UserError(
            f"--max-concurrent-trials is {wanted}, but the cluster fits {fit} at once, each {single}"
        )
    at_once = min(wanted or fit, trials)
    cpus = scale.cpus_per_worker or max(even_cpus(nodes, at_once * count), 1)
    return Share(at_once, scale.model_copy(update={"cpus_per_worker": cpus, "use_gpu": single.gpu}))


class Halving(ASHAScheduler):  # type: ignore[misc]
    """ASHA that records the trials it stops, and never stops one that has seen its whole budget."""

    def __init__(self, images: int, grace: int, stopped: Callable[[Any, dict[str, Any]], None]) -> None:
        super().__init__(
            time_attr=IMAGES,
            metric=SCORE,
            mode="min",
            max_t=max(images - 1, 1),  # no rung at the end: the numbers of a finished trial come after it
            grace_period=min(grace, max(images - 1, 1)),
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        self._stopped = stopped

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self._stopped(trial, result)
        return str(action)


class Watch(tune.Callback):  # type: ignore[misc]
    """Frees the leases of trials that end, records deaths, and prints a line for each trial."""

    def __init__(self, plan: Plan, leases: Any, total: int) -> None:
        self.plan, self.leases, self.total = plan, leases, total
        self.started = time.monotonic()

    def stopped(self, trial: Any, result: dict[str, Any]) -> None:
        """Called by ASHA before the trial's processes are ended."""
        numbers = {SCORE: result[SCORE], IMAGES: result[IMAGES]}
        reason = f"by ASHA at {result[IMAGES]:,} images"
        mine = self._trial(trial)
        record = self.plan.record(mine, status="stopped", numbers=numbers, score=result[SCORE], reason=reason)
        write_record(self.plan.run, record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error() or RuntimeError("its process died")
        try:
            record = self.plan.record(self._trial(trial), status="failed", reason=reason_of(error))
        except UserError as impossible:  # a config that Optuna put together
            console.print(f"no trial: {impossible}")
            return
        write_record(self.plan.run, record)
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        name = self._trial(trial).name
        ray.get(self.leases.release_all.remote(name))
        mine = find_record(self.plan.run, name)
        if mine is not None:
            count, seconds = len(read_records(self.plan.run)), time.monotonic() - self.started
            line = line_of(mine, self.plan.metric)
            console.print(f"{count}/{self.total} after {seconds:.0f} s: {line}")

    def _trial(self, trial: Any) -> Trial:
        return self.plan.trial(point_of(trial.config))


def line_of(record: Record, metric: str) -> str:
    """A trial's end for a person."""
    head = f"{record.trial} {record.status}"
    if record.status == "finished":
        head += f", {metric} {record.numbers[metric]:.2f}, test NLL {record.numbers['test_nll']:.2f}"
    elif record.reason:
        head += f" {record.reason}" if record.status == "stopped" else f": {record.reason}"
    return f"{head} ({record.label})"


def run_sweep(
    plan: Plan,
    todo: list[Trial] | None,
    total: int,
    at_once: int,
    asha: bool,
    time_budget_s: float | None,
) -> None:
    """Runs the trials `todo` (None: Optuna proposes what is missing of `total`); each leaves a record.

    Returns early where the time is up or on an interrupt.
    """
    os.environ.update(ENVIRONMENT)
    done = read_records(plan.run)
    leases: Any = ray.remote(num_cpus=0)(Leases).remote()
    watch = Watch(plan, leases, total)
    points: dict[str, Any] = {}
    if todo is not None:
        points = {"point": tune.grid_search([trial.point for trial in todo])}
    with tempfile.TemporaryDirectory() as folder:  # Tune's own state; ours is the records
        tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, plan=plan, leases=leases), DRIVER),
            param_space=points,
            tune_config=tune.TuneConfig(
                scheduler=_halving(plan, watch) if asha else None,
                search_alg=None if todo is not None else optuna_search(plan.space, plan.base["seed"], done),
                num_samples=1 if todo is not None else total - len(done),
                max_concurrent_trials=at_once,
                time_budget_s=time_budget_s,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=folder, callbacks=[watch], verbose=0, log_to_file=False
            ),
        ).fit()


def _halving(plan: Plan, watch: Watch) -> Halving:
    images = plan.base[METRICS[plan.metric].stage]["images"]
    return Halving(images, max(images // (2 * REDUCTION), 1), watch.stopped)


def require_optuna() -> None:
    try:
        import optuna  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise UserError(
            "--search optuna needs Optuna: pip install optuna (or take --search random)"
        ) from None


def optuna_search(space: Space, seed: int, done: list[Record]) -> Any:
    """Optuna's TPE over the space, told the scores of the trials that are done."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    domains: dict[str, Any] = {}
    for name, domain in space.fields.items():
        if isinstance(domain, Choice):
            domains[name] = optuna.distributions.CategoricalDistribution(list(range(len(domain.values))))
        else:
            domains[name] = optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    known: list[tuple[Point, float]] = [(r.point, r.score) for r in done if r.score is not None and r.point]
    told = [point for point, _ in known] or None
    rewards = [score for _, score in known] or None
    # Another seed after each resume: the draws that were told would come again.
    return OptunaSearch(
        domains,
        metric=SCORE,
        mode="min",
        points_to_evaluate=told,
        evaluated_rewards=rewards,
        seed=seed + len(done),
    )


def with_share(plan: Plan, share: Share) -> Plan:
    """The plan whose trials take their share of the cluster."""
    return replace(plan, base={**plan.base, "scale": share.scale.model_dump(mode="json")})
