"""Runs a comparison of kinds: what the command `sweep` does with a space that is a `Comparison`.

Its folder holds comparison.json, the plan with all that was decided, and the runs: rates/ (the cost of an
image), trials/, seeds/ and longer/. A second start does what is missing. `evaluate --compare` reads the plan.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from npdraw_dist.config.load import differences, dump, read_file, with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import write_atomically, write_text
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.store import Store
from tune_spaces.comparison import PROBE, RATE_IMAGES, Comparison, Job, Rate, base_config, draw_trials
from tune_spaces.contest_trainings import Train, here, on_tune
from tune_spaces.sweep import Options
from tune_spaces.training_command import core_seconds, is_trained, store_of
from tune_spaces.trial_results import TrialResult, forget_failed, label, read_results

PLAN = "comparison.json"
FAIR = (0.75, 1.33)  # shares of core_seconds between which the median of a kind's trials should be
CLOSE = 0.1  # share of core_seconds by which a winner may miss them before its budget is corrected
GAIN = 0.0025  # share by which a longer training has to lower the NLL, to be counted as an improvement


@dataclass(frozen=True)
class Contest:
    """A comparison in its folder. trials: of all kinds, in the order of the plan. count: of each kind."""

    run: Store
    space: Comparison
    base: Experiment
    kinds: list[str]
    count: int
    core_seconds: float
    seeds: int
    trials: list[Job]

    @classmethod
    def of(cls, options: Options, space: Comparison, flags: dict[str, Any]) -> "Contest":
        """Raises UserError on flags that a comparison does not take, or an impossible config."""
        for name in ("search", "scheduler", "metric", "time_budget_s"):
            if name in options.model_fields_set:
                raise UserError(
                    f"--{name.replace('_', '-')} is no flag of a comparison: all kinds have one chance"
                )
        space = space.until(options.longest)
        file = read_file(Path(options.config)) if options.config is not None else {}
        base = base_config(space, options.preset, file, flags)
        kinds, count = space.chosen(options.kinds), options.num_samples or space.trials
        seconds = options.core_seconds or space.seconds_of(base.data.fraction)
        seeds = options.seeds or space.seeds.get(base.data.source, space.other_seeds)
        preset = options.preset or space.preset
        name = options.name or f"comparison-{preset}-{100 * base.data.fraction:g}"
        run = Store.open(options.storage, name)
        return cls(run, space, base, kinds, count, seconds, seeds, draw_trials(space, base, kinds, count))

    @property
    def facts(self) -> dict[str, Any]:
        """What the comparison is: a second start with others is refused."""
        found: dict[str, Any] = {
            "fraction": self.base.data.fraction,
            "core_seconds": self.core_seconds,
            "seeds": self.seeds,
            "trials": {job.name: {"kind": job.kind, "settings": job.settings} for job in self.trials},
            "config": {**self.base.deciding(), "data": self.base.data.deciding()},
        }
        found["config"]["data"].pop("path", None)  # data may be moved; each run knows its files
        return dict(json.loads(json.dumps(found)))

    @property
    def trainings(self) -> int:
        """The most trainings that a kind can have, in units of core_seconds."""
        return self.count + self.seeds + sum(self.space.longer)


def plan_lines(contest: Contest) -> list[str]:
    """A line for each trial; its first word is the kind."""
    return [
        f"{job.kind}  {job.name}  {contest.core_seconds:g} core-seconds  "
        + label({key: value for key, value in job.settings.items() if key != "model.kind"})
        for job in contest.trials
    ]


def plan_note(contest: Contest) -> str:
    """What the whole comparison takes, in a line."""
    hours = contest.trainings * len(contest.kinds) * contest.core_seconds / 3600
    longer = " + ".join(map(str, contest.space.longer))
    return (
        f"{len(contest.kinds)} kinds, each {contest.count} trials, {contest.seeds} seeds of the best and up "
        f"to {longer} times as long until it stops improving, {contest.core_seconds:g} counted seconds of a "
        f"core each: at most {hours:.1f} hours of a core, besides scores"
    )


def run(options: Options, space: Comparison, flags: dict[str, Any], execute: Train | None = None) -> None:
    """The comparison of `options`. execute: in place of Ray Tune, or of this process with
    scale.num_workers 0. Raises UserError."""
    contest = Contest.of(options, space, flags)
    if options.dry_run:
        print("\n".join(plan_lines(contest)))
        print(plan_note(contest), file=sys.stderr)  # apart from the trials, a line each
        return
    store = contest.run
    if execute is None:
        _check(contest)
        execute = here if contest.base.scale.here else on_tune(options.max_concurrent_trials)
    record = _claim(contest)
    with store.lease("comparison"):
        if options.retry_failed:
            forget_failed(store)
        console.print(plan_note(contest))
        record["rates"] = _rates(contest, record.get("rates", {}), execute)
        store.write_json(record, PLAN)
        trials = [
            _budgeted(contest, job, record["rates"]) for job in contest.trials if job.name in record["rates"]
        ]
        _train_missing(contest, trials, execute)
        for line in _unfair(contest, trials):
            console.print(line)
        winners = _winners(contest, trials)
        winners = {k: replace(job, budget=_true_budget(contest, job, record)) for k, job in winners.items()}
        record["winners"] = {kind: job.name for kind, job in winners.items()}
        record["budgets"] = {kind: job.budget for kind, job in winners.items()}
        store.write_json(record, PLAN)
        finals = _seeds(contest, winners, execute)
        longer = _longer(contest, winners, execute)
        record["finals"] = [_final(contest, job, "seed") for job in finals]
        record["finals"] += [_final(contest, job, "longest", improving) for job, improving in longer]
        record["spent"] = {
            job.name: round(core_seconds(store, job), 1) for job in trials if _is_done(store, job)
        }
        store.write_json(record, PLAN)
        _write_results(contest, trials, winners)


def _check(contest: Contest) -> None:
    """Raises UserError if a trial cannot run, before anything is written: all of them read the same data."""
    from npdraw_dist.pipeline import preflight  # imports torch

    experiment = contest.trials[0].experiment
    preflight.check(experiment, contest.run, experiment.stage_names)


def _claim(contest: Contest) -> dict[str, Any]:
    """The plan of the folder, written if it is new. Raises UserError if it is of another comparison, or if
    the test split was opened."""
    run, facts = contest.run, contest.facts
    if not run.has(PLAN):
        run.make_folder()
        run.write_json(facts, PLAN)
        return facts
    record = run.read_json(PLAN)
    changed = differences({key: record.get(key) for key in facts}, facts)
    if changed:
        raise UserError(f"{run.shown()} is another comparison ({'; '.join(changed)}); take another --name")
    if run.has("opened.json"):
        raise UserError(
            f"{run.shown()} was compared on the test split: nothing is trained any more; take another --name"
        )
    return record


def _rates(contest: Contest, known: dict[str, Any], execute: Train) -> dict[str, Any]:
    """The cost of each trial, measured once: trial -> fixed_s, ms and the budget `images` that follows."""
    found = dict(known)
    few, many = RATE_IMAGES
    missing = [job for job in contest.trials if job.name not in found]
    first, second = (
        _measured(contest, [job.with_images(n, "rates", f"{job.name}-{n}") for job in missing], execute)
        for n in RATE_IMAGES
    )
    probes = []
    for job, short, longer in zip(missing, first, second, strict=True):
        if short is not None and longer is not None:
            images = Rate.rough((short, longer)).images(contest.core_seconds / PROBE, job.experiment)
            probes.append((job, job.with_images(max(images, many), "rates", _probe(job)), short))
    counted = _measured(contest, [probe for _, probe, _ in probes], execute)
    for (job, probe, short), seconds in zip(probes, counted, strict=True):
        if seconds is not None:
            rate = Rate.of((few, probe.budget or 0), (short, seconds))
            images = rate.images(contest.core_seconds, job.experiment)
            found[job.name] = {"fixed_s": round(rate.fixed_s, 3), "ms": round(rate.ms, 4), "images": images}
    return found


def _probe(job: Job) -> str:
    """The name of the training that tells what an image of a trial costs."""
    return f"{job.name}-probe"


def _measured(contest: Contest, jobs: Sequence[Job], execute: Train) -> list[float | None]:
    """The counted seconds of each training; None of one that failed: its trial counts as one of the kind."""
    _train_missing(contest, jobs, execute, with_scores=False)
    run = contest.run
    return [core_seconds(run, job) if is_trained(run, job) else None for job in jobs]


def _budgeted(contest: Contest, job: Job, rates: dict[str, Any]) -> Job:
    return job.with_images(rates[job.name]["images"], "trials", job.name)


def _train_missing(contest: Contest, jobs: Sequence[Job], execute: Train, with_scores: bool = True) -> None:
    """Trains what is neither done nor failed. Raises UserError if some of it is left: Tune returns on an
    interrupt, and nothing may be chosen among the trainings that happen to be done."""
    execute(contest.run, _missing(contest.run, jobs, with_scores), with_scores)
    left = _missing(contest.run, jobs, with_scores)
    if left:
        raise UserError(
            f"{len(left)} of {len(jobs)} trainings were stopped, such as {left[0].path}; "
            "the same command goes on with them"
        )


def _missing(run: Store, jobs: Sequence[Job], with_scores: bool) -> list[Job]:
    """Those that are neither done nor failed."""
    failed, is_done = _failures(run), _is_done if with_scores else is_trained
    return [job for job in jobs if job.name not in failed and not is_done(run, job)]


def _is_done(run: Store, job: Job) -> bool:
    from npdraw_dist.pipeline.sample import is_done  # imports torch

    return is_trained(run, job) and is_done(job.experiment, store_of(run, job))


def _true_budget(contest: Contest, job: Job, record: dict[str, Any]) -> int:
    """The images of a winner's seeds: those of its trial, or as many as take the time, if that took more than
    CLOSE another time: a trial says better what it costs than its rate. Once written down it stays, as long
    as the winner does. Rates of a copied plan are of another machine, and the time here says nothing of them.
    """
    if job.kind in record.get("budgets", {}) and record["winners"][job.kind] == job.name:
        return int(record["budgets"][job.kind])
    run, seconds, budget = contest.run, contest.core_seconds, job.budget or 0
    spent = core_seconds(run, job)
    if not _measured_here(run, job) or abs(spent / seconds - 1) <= CLOSE or _images(run, job) < budget:
        return budget
    fixed = min(record["rates"][job.name]["fixed_s"], spent / 2)
    return Rate.of((0, budget), (fixed, spent)).images(seconds, job.experiment)


def _measured_here(run: Store, job: Job) -> bool:
    """Whether this sweep measured the trial's rate. Else its budget was copied with a plan."""
    return run.has("rates", _probe(job))


def _unfair(contest: Contest, trials: Sequence[Job]) -> list[str]:
    """A line for each kind whose trials took another time than they were given: this sweep measured their
    rates badly, or with other code. Trials that ended before their budget, or whose budget was copied with a
    plan, say nothing."""
    run, found = contest.run, []
    for kind in contest.kinds:
        spent = [
            core_seconds(run, job) / contest.core_seconds
            for job in trials
            if job.kind == kind
            and _measured_here(run, job)
            and _is_done(run, job)
            and _images(run, job) == job.budget
        ]
        middle = median(spent or [1.0])
        if not FAIR[0] <= middle <= FAIR[1]:
            found.append(
                f"{kind}: the median of its trials took {middle:.2f} of its {contest.core_seconds:g} "
                "core-seconds; a comparison under another --name measures all rates anew"
            )
    return found


def _failures(run: Store) -> set[str]:
    return {result.trial for result in read_results(run) if result.status == "failed"}


def valid_nll(run: Store, job: Job) -> float:
    """By what trials are chosen: the bound on validation images, nats an image."""
    return float(store_of(run, job).read_json("metrics.json")["valid/nll_iwae"])


def _winners(contest: Contest, trials: Sequence[Job]) -> dict[str, Job]:
    """The best trial of each kind. Raises UserError if a kind has none that finished."""
    found = {}
    for kind in contest.kinds:
        done = [job for job in trials if job.kind == kind and _is_done(contest.run, job)]
        if not done:
            reasons = [
                r.reason for r in read_results(contest.run) if r.trial.startswith(f"{kind}-") and r.reason
            ]
            raise UserError(
                f"no trial of {kind} finished; the first: {(reasons or ['stopped'])[0]} (--retry-failed)"
            )
        found[kind] = min(done, key=lambda job: (valid_nll(contest.run, job), job.name))
    return found


def _seeds(contest: Contest, winners: dict[str, Job], execute: Train) -> list[Job]:
    """The winners trained anew with seeds of their own: the trial's has been chosen among many."""
    assert all(job.budget is not None for job in winners.values())
    first = contest.base.seed + 1
    jobs = [
        job.with_images(job.budget or 0, "seeds", f"{kind}-seed-{seed}", seed)
        for seed in range(first, first + contest.seeds)
        for kind, job in winners.items()
    ]
    _train_missing(contest, jobs, execute)
    return [job for job in jobs if _is_done(contest.run, job)]


def _longer(contest: Contest, winners: dict[str, Job], execute: Train) -> list[tuple[Job, bool]]:
    """The winner of each kind, trained for longer until validation stops improving.

    The best of them, and whether the longest one was still improving. Each has schedules of its own.
    """
    run, best = contest.run, dict(winners)
    improving = dict.fromkeys(winners, True)
    for factor in contest.space.longer:
        jobs = {
            kind: winners[kind].with_images(
                factor * (winners[kind].budget or 0), "longer", f"{kind}-x{factor}"
            )
            for kind in winners
            if improving[kind]
        }
        _train_missing(contest, list(jobs.values()), execute)
        for kind, job in jobs.items():
            improving[kind] = _is_done(run, job) and valid_nll(run, job) < (1 - GAIN) * valid_nll(
                run, best[kind]
            )
            best[kind] = job if improving[kind] else best[kind]
    return [(best[kind], improving[kind]) for kind in winners]


def _images(run: Store, job: Job) -> int:
    """The images that a training saw: less than its budget if it ended early."""
    return int(store_of(run, job).read_json("vae", "manifest.json")["images"])


def _final(contest: Contest, job: Job, role: str, improving: bool | None = None) -> dict[str, Any]:
    """What `evaluate --compare` is told of a run."""
    return {
        "run": job.path,
        "kind": job.kind,
        "role": role,
        "seed": job.experiment.seed,
        "core_seconds": round(core_seconds(contest.run, job), 1),
        "images": _images(contest.run, job),
        "valid_nll": valid_nll(contest.run, job),
        **({} if improving is None else {"still_improving": improving}),
    }


def _write_results(contest: Contest, trials: Sequence[Job], winners: dict[str, Job]) -> None:
    """results.parquet, best.yaml, and the winners on the screen."""
    from tune_spaces.results import ranked, results_table

    run = contest.run
    rows = [result for result in read_results(run) if result.status == "failed"]
    rows += [_result(run, job) for job in trials if _is_done(run, job)]
    table = results_table(ranked(rows, "valid_nll"))
    write_atomically(
        run.filesystem, run.path("results.parquet"), lambda stream: pq.write_table(table, stream)
    )
    best = min(winners.values(), key=lambda job: valid_nll(run, job))
    text = dump(with_changes(best.experiment, {"eval": {"split": "test"}}))
    write_text(run.filesystem, run.path("best.yaml"), f"# The best trial by validation, {best.name}.\n{text}")
    for kind, job in winners.items():
        printed.print(f"{kind}: {job.name}, valid NLL {valid_nll(run, job):.2f} ({label(job.settings)})")
    printed.print(f"next: npdraw evaluate --compare {run.shown()} --out FOLDER")


def _result(run: Store, job: Job) -> TrialResult:
    store = store_of(run, job)
    metrics, manifest = store.read_json("metrics.json"), store.read_json("vae", "manifest.json")
    numbers = {
        "valid_nll": metrics["valid/nll_iwae"],
        "bits_per_dim": metrics["valid/bits_per_dim"],
        "parameters": manifest["parameters"],
        "seconds": core_seconds(run, job),
        "images_seen": manifest["images"],
    }
    return TrialResult(job.name, "finished", job.point, job.settings, numbers, metrics["valid/nll_iwae"])
