"""python -m tune_spaces.sweep: many configs of a search space on Ray Tune, and what they answer."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, PositiveFloat, PositiveInt
from pydantic_settings import CliImplicitFlag

from npdraw_dist.config.cli import Command, dashed, parse_flags, run_command, validate
from npdraw_dist.config.load import build, differences, merge, read_file, read_preset
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.training.environment import MANY_PROCESSES, restart_with_allocator
from tune_spaces.records import find_metric
from tune_spaces.space import DRAWS, Space, load_space, nested

SWEEP = "sweep.json"


class Options(BaseModel):
    """The sweep's own flags."""

    space: str = Field(description="a space: structure, prior, vae, low_data, smoke, or a .py file")
    preset: str | None = Field(None, description="a preset; the space's where not given")
    config: str | None = Field(None, description="a YAML file of settings over the preset")
    num_samples: PositiveInt | None = dashed(None, "num-samples", "trials in all; the space's if not given")
    name: str | None = Field(None, description="the sweep; sweep-<space>-<preset> where not given")
    storage: str = Field("runs", description="folder or URI that holds the run folders")
    metric: str | None = Field(None, description="valid_nll or valid_prior_nll; the space's if not given")
    search: Literal["random", "optuna"] = Field("random", description="what proposes the trials")
    scheduler: Literal["asha", "none"] = Field("asha", description="stop poor trials early, or none")
    max_concurrent_trials: PositiveInt | None = dashed(
        None, "max-concurrent-trials", "trials at once; as many as the cluster has CPUs or GPUs for"
    )
    time_budget_s: PositiveFloat | None = dashed(
        None, "time-budget-s", "seconds after which the sweep stops, to be resumed"
    )
    retry_failed: CliImplicitFlag[bool] = dashed(False, "retry-failed", "run failed trials again")
    dry_run: CliImplicitFlag[bool] = dashed(False, "dry-run", "print the trials and stop")


class Sweep(Command, Options, Experiment):  # type: ignore[misc]  # pydantic-settings narrows model_config
    """Trains many configs of a search space and answers with a table, plots and the best config.

    The same command again goes on where the sweep stopped. Settings come from the preset, then the
    space's budgets, then --config, then flags; the space's own fields vary.
    """


def flag_of(name: str) -> str:
    alias = Options.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else name


def parse(argv: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """The sweep's own flags, and those of the config."""
    flags: dict[str, Any] = parse_flags(Sweep, "tune_spaces.sweep", argv)
    names = [flag_of(name) for name in Options.model_fields]
    own = {name: flags.pop(name) for name in names if name in flags}
    if "space" not in own:
        raise UserError("--space is missing; try --space smoke")
    return validate(Options, own), flags


def base_config(options: Options, space: Space, flags: Mapping[str, Any]) -> Experiment:
    """The config that the points of the space vary. Raises UserError where a flag sets what varies."""
    preset = options.preset or space.preset
    file = read_file(Path(options.config)) if options.config else {}
    for key in space.keys:
        section, _, name = key.rpartition(".")
        if name in flags.get(section, {}):
            raise UserError(f"--{key} varies in the space {options.space}; leave it out")
    return build(merge(read_preset(preset), nested(space.budgets.get(preset, {})), file, flags))


def draw(space: Space, base: Mapping[str, Any], count: int, name: str, trial_of: Any) -> list[Any]:
    """The first `count` distinct trials of the space, the base config first: always the same ones.

    Raises UserError where the space has fewer, or where one of them makes no possible config.
    """
    found: dict[str, Any] = {}
    for point in islice(space.points(base["seed"]), DRAWS * count):
        trial = trial_of(point)
        found.setdefault(trial.name, trial)
        if len(found) == count:
            return list(found.values())
    raise UserError(f"space {name} has {len(found)} distinct trials; --num-samples {count} is too many")


def claim(run: Any, base: Experiment, options: Options, space: Space, metric: str) -> None:
    """Makes the run folder, or checks that it is of the same sweep; raises UserError naming what differs."""
    run.claim(base)
    facts = {
        "space": json.loads(json.dumps(dict(space.fields), default=vars)),
        "metric": metric,
        "search": options.search,
        "scheduler": options.scheduler,
    }
    if not run.has(SWEEP):
        run.write_json(facts, SWEEP)
        return
    changed = differences(run.read_json(SWEEP), facts)
    if changed:
        raise UserError(f"sweep {run.shown()} is another one ({'; '.join(changed)}); take another --name")


def show_trials(trials: Sequence[Any], plan: Any) -> Iterator[str]:
    for trial in trials:
        yield f"{trial.name}  {plan.record(trial, status='finished').label}"


def main(argv: Sequence[str]) -> None:
    options, flags = parse(argv)
    space = load_space(options.space)
    base = base_config(options, space, flags)
    count = options.num_samples or space.samples
    metric = options.metric or space.metric
    find_metric(metric)

    # Torch and Ray take seconds to import: only once the flags are known to be good.
    from npdraw_dist.pipeline.run import check_data
    from npdraw_dist.pipeline.store import Store
    from tune_spaces import tuning
    from tune_spaces.records import forget_failed
    from tune_spaces.trial import Plan

    if options.search == "optuna":
        tuning.require_optuna()
    label = Path(options.space).stem
    name = options.name or f"sweep-{label}-{options.preset or space.preset}"
    run = Store.open(options.storage, name)
    plan = Plan(run.filesystem, run.root, base.model_dump(mode="json"), space, metric)
    trials = draw(space, plan.base, count, label, plan.trial) if options.search == "random" else None
    if options.dry_run:
        print("\n".join(show_trials(trials or [], plan)))
        return
    if not run.has("config.yaml"):
        check_data(base)
    claim(run, base, options, space, metric)
    if options.retry_failed:
        forget_failed(run)
    _carry_out(plan, options, trials, count)
    _answer(plan, trials, count)


def _carry_out(plan: Any, options: Options, trials: list[Any] | None, count: int) -> None:
    """Runs the trials that have no record."""
    from npdraw_dist.pipeline.progress import console
    from npdraw_dist.training.launch import start_ray
    from npdraw_dist.training.resources import require_shared
    from tune_spaces import tuning
    from tune_spaces.records import read_records

    done = {record.trial for record in read_records(plan.run)}
    todo = None if trials is None else [trial for trial in trials if trial.name not in done]
    missing = count - len(done) if todo is None else len(todo)
    if missing <= 0:
        return
    base = build(plan.base)
    os.environ.update(MANY_PROCESSES)
    start_ray(base.scale, dashboard=True)  # trials are stopped from outside
    if plan.run.is_local:
        require_shared(plan.run.root)
    share = tuning.share_cluster(base.scale, options.max_concurrent_trials, missing)
    done_text = f"{count - missing} are done, " if missing < count else ""
    console.print(
        f"{count} trials: {done_text}{share.trials} at once, each {base.scale.num_workers} worker(s) of "
        f"{share.scale.cpus_per_worker} CPU(s){' and a GPU' if share.scale.use_gpu else ''}"
    )
    shared = tuning.with_share(plan, share)
    tuning.run_sweep(shared, todo, count, share.trials, options.scheduler == "asha", options.time_budget_s)


def _answer(plan: Any, trials: list[Any] | None, count: int) -> None:
    """Writes and prints what came of the trials; raises UserError where none finished."""
    from npdraw_dist.pipeline.progress import console
    from tune_spaces.answers import ranked, write_answers
    from tune_spaces.records import read_records

    wanted = None if trials is None else {trial.name for trial in trials}
    records = [r for r in read_records(plan.run) if wanted is None or r.trial in wanted]
    finished = [record for record in ranked(records, plan.metric) if record.status == "finished"]
    best: Experiment | None = plan.trial(finished[0].point).experiment if finished else None
    if records:
        write_answers(plan.run, records, plan.metric, best)
    if len(records) < count:
        console.print(f"{len(records)} of {count} trials are done; the same command goes on")
    elif best is None:
        raise UserError(f"no trial finished; the first: {records[0].reason} (--retry-failed runs them again)")


if __name__ == "__main__":
    restart_with_allocator()
    run_command(main)
