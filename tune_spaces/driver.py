"""Runs the command `sweep`, which trains many configs of a search space on Ray Tune and compares them."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from npdraw_dist.config.load import merge, with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.distributed.start import MANY_PROCESSES, is_local, require_ray
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.run import check, removed_if_refused
from npdraw_dist.pipeline.store import SWEEP, Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.lease import Lease
from npdraw_dist.system.process import require_extra
from tune_spaces import comparison
from tune_spaces.options import OF_KINDS, Options, load_space
from tune_spaces.results import ranked, write_results
from tune_spaces.space import Kinds, Space, refuse_settings, require_metric, require_scratch
from tune_spaces.trials import Plan, Trial, claim_facts, forget_failed, label, read_results


def base_config(options: Options, space: Space, flags: Mapping[str, Any]) -> Experiment:
    """The config that each trial changes. Raises UserError on a flag for a setting that the space varies."""
    refuse_settings(flags, space.keys, f"varies in the space {options.space}")
    file = options.file()
    if flags.get("eval", {}).get("split") == "test" and not space.curve:
        raise UserError(
            "a sweep never opens the test split; leave out --eval.split test, and train best.yaml to have it"
        )
    if merge(file, flags).get("eval", {}).get("split") == "valid" and space.curve:
        raise UserError(
            f"eval.split is valid, but the curve of the space {options.space} has test numbers; leave it out"
        )
    split = {"eval": {"split": "test" if space.curve else "valid"}}
    base = space.base(options.preset or space.preset, file, flags, split)
    if base.scale.in_process:
        raise UserError(
            "scale.num_workers is 0, but the trials of a sweep run on Ray; give a number such as 1"
        )
    require_scratch(base)
    return base


def claim(plan: Plan, options: Options) -> Plan:
    """Claims the run folder; returns the plan with section `train` as in the sweep's first start.

    Section `train` never changes, so that trials can be compared; the data may be at a new path. Raises
    UserError with the differences if the folder holds another sweep, or if the data are not the same.
    """
    run = plan.run
    run.claim(plan.base)
    if not plan.varies_data and plan.base.data.path != run.config().data.path:
        plan.cache.require_same_data(plan.base)
    plan = replace(plan, base=plan.base.model_copy(update={"train": run.config().train}))
    facts = {"space": dict(plan.space.fields), "metric": plan.metric}
    claim_facts(run, SWEEP, facts | {"search": options.search, "scheduler": options.scheduler})
    return plan


def run(options: Options, flags: Mapping[str, Any]) -> None:
    """Runs the sweep that `options` describe. flags: the flags of the config, nested. Raises UserError."""
    space = load_space(options.space)
    if isinstance(space, Kinds):
        comparison.run(options, space, dict(flags))
        return
    options.refuse(OF_KINDS, "is a flag of --space comparison; leave it out")
    if space.curve:  # a curve shows all trials; ASHA would select some by their scores
        options.refuse(("scheduler",), f"ends no trial of the space {options.space} early; leave it out")
        options = options.model_copy(update={"scheduler": "none"})
    base = base_config(options, space, flags)
    metric = options.metric or space.metric
    require_metric(metric)
    if options.search == "optuna":
        require_extra("--search optuna", "optuna", "optuna")
    default = f"sweep-{Path(options.space).stem}-{options.preset or space.preset}"
    name = default if options.name is None else options.name
    plan = Plan(Store.open(options.storage, name), base, space, metric)
    count = options.num_samples or space.samples
    trials = plan.draw(count) if options.search == "random" else None
    if options.dry_run:
        print("\n".join(f"{trial.name}  {label(trial.settings)}" for trial in trials or []))
        return
    require_ray("sweep")
    fresh, new = not plan.run.has(), not plan.run.has("config.yaml")
    if new:  # mistakes are found before anything is written and Ray is started
        plan.run.require_own()
        check(plan.base, plan.run, plan.base.stage_names)
        if is_local():
            from tune_spaces.tuning import divide  # imports Ray

            divide(plan.base.scale, options.max_concurrent_trials, count, local=True)
    else:
        plan = claim(plan, options)
    with plan.run.lease("sweep") as lease:
        if new:
            plan = claim(plan, options)
        trials = None if trials is None else plan.draw(count)
        if options.retry_failed:
            forget_failed(plan.run)
        _run_missing(plan, options, trials, count, lease if fresh else None)
        lease.check()
        _write_results(plan, trials, count)


def _run_missing(
    plan: Plan, options: Options, trials: list[Trial] | None, count: int, fresh: Lease | None
) -> None:
    """Runs the trials that have no result. fresh: the lease on a new run folder; None for an old folder."""
    done = {result.trial for result in read_results(plan.run)}
    todo = None if trials is None else [trial for trial in trials if trial.name not in done]
    missing = count - len(done) if todo is None else len(todo)
    if missing <= 0:
        return

    # Ray takes seconds to import, so it is imported only if there is a trial to run.
    from npdraw_dist.distributed.nodes import require_shared
    from npdraw_dist.distributed.start import start_ray
    from tune_spaces.tuning import divide, run_sweep

    if not plan.varies_data and plan.cache.needs_data([t.experiment for t in todo or []]):
        plan.cache.require_same_data(plan.base)
    folders = plan.run.landmarks()
    os.environ.update(MANY_PROCESSES)
    with contextlib.nullcontext() if fresh is None else removed_if_refused(plan.run, fresh):
        start_ray(plan.base.scale)
        require_shared(folders)
        allocation = divide(plan.base.scale, options.max_concurrent_trials, missing)
    done_text = f"{count - missing} are done, " if missing < count else ""
    console.print(f"{count} trials: {done_text}{allocation}")
    sized = replace(plan, base=plan.base.model_copy(update={"scale": allocation.scale}))
    run_sweep(sized, todo, count, allocation, options, folders)


def _write_results(plan: Plan, trials: list[Trial] | None, count: int) -> None:
    """Writes and prints the results of the trials. Raises UserError if no trial finished."""
    results = read_results(plan.run)
    if trials is not None:
        wanted = {trial.name for trial in trials}
        results = [result for result in results if result.trial in wanted]
    best: Experiment | None = None
    if results:
        first = ranked(results, plan.metric)[0]
        if first.finished:
            best = with_changes(plan.trial(first.point).experiment, {"eval": {"split": "test"}})
        write_results(plan.run, results, plan.metric, best, plan.space.curve)
    if len(results) < count:
        printed.print(f"{len(results)} of {count} trials are done; the same command resumes the sweep")
    elif best is None:
        raise UserError(f"no trial finished; the first one failed: {results[0].reason} (see --retry-failed)")
