"""Runs a comparison of kinds of models, for the command `sweep` with a space of `Kinds`.

The folder of a comparison has comparison.json, the plan with all decisions, and the runs in rates/ (short
trainings that measure the fixed cost), trials/, seeds/ and longer/. A second start runs what is missing.
`npdraw report` reads the plan.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from npdraw_dist.config.load import dump, with_changes
from npdraw_dist.config.prepared import MANIFEST
from npdraw_dist.data.shards import Source, open_source
from npdraw_dist.distributed.start import require_ray
from npdraw_dist.distributed.tasks import map_items
from npdraw_dist.pipeline.data import RunData, follow
from npdraw_dist.pipeline.progress import console
from npdraw_dist.pipeline.progress import results as printed
from npdraw_dist.pipeline.run import check
from npdraw_dist.pipeline.store import BEST, COMPARISON, Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import OBJECT_STORES, write_text
from tune_spaces.budgets import Job, Rate, base_config, draw_trials, ms_an_image
from tune_spaces.options import NOT_OF_KINDS, Options
from tune_spaces.results import write_table
from tune_spaces.space import Kinds, refuse_settings
from tune_spaces.trainings import (
    Train,
    core_seconds,
    images_seen,
    is_trained,
    on_ray,
    one_by_one,
    runs_in,
    store_of,
    valid_nll,
)
from tune_spaces.trials import TrialResult, claim_facts, forget_failed, label, read_results, write_result

PLAN, OPENED = COMPARISON, "opened.json"  # the plan; the protocol that opened the test split
FAIR = (0.75, 1.33)  # allowed median time of a kind's trials: least and largest, as shares of core_seconds
CLOSE = 0.1  # a winner that misses core_seconds by a larger share gets a corrected budget
# Lengths of more trainings of a best trial, as multiples, for the report's row "until it stops improving".
LONGER = (2, 4)
GAIN = 0.0025  # a longer training counts as better if it lowers the NLL by at least this share

Probe = Callable[[Sequence[Job]], Mapping[str, float | str]]  # returns: name of a job -> its `ms_an_image`


class Comparison:
    """A comparison of kinds. run: its folder. trials: `count` trials of each kind, in the plan's order."""

    def __init__(
        self,
        options: Options,
        space: Kinds,
        flags: dict[str, Any],
        execute: Train | None,
        probe: Probe | None,
    ) -> None:
        """Draws the trials, and trains nothing.

        execute: trains jobs; if None, they train on Ray, or on this machine if scale.num_workers is 0. probe:
        measures the cost of an image; if None, a few training steps measure it. Raises UserError on flags
        that a comparison does not take, or on an impossible config.
        """
        options.refuse(NOT_OF_KINDS, "is no flag of a comparison, which searches all kinds alike")
        self.longer = [factor for factor in LONGER if factor <= options.longest]
        self.base = base_config(space, options.preset, options.file(), flags)
        data, preset = self.base.data, options.preset or space.preset
        name = options.name or f"{Path(options.space).stem}-{preset}-{100 * data.fraction:g}"
        self.run = Store.open(options.storage, name)
        if self.run.filesystem.type_name not in (*OBJECT_STORES, "local") or "?" in options.storage:
            raise UserError(
                f"--storage {options.storage} cannot hold a comparison, whose trainings are commands; give a "
                "folder or a URI of s3://, gs:// or abfs:// without options (AWS_ENDPOINT_URL sets a server)"
            )
        self.kinds, self.count = space.chosen(options.kinds), options.num_samples or space.trials
        for kind in self.kinds:
            refuse_settings(flags, space.of(kind).keys, f"varies in the space of {kind}")
        self.core_seconds = options.core_seconds or space.seconds_of(data.fraction)
        self.seeds = options.seeds or space.seeds.get(data.source, space.other_seeds)
        planned = options.dry_run or execute is not None  # true if the data need not exist
        if not planned and not self.base.scale.in_process:
            require_ray("sweep --space comparison without --scale.num_workers 0")
        own_valid = not planned and data.fraction < 1 and self._has_own_validation()
        self.trials = draw_trials(space, self.base, self.kinds, self.count, own_valid)
        on_cluster = partial(on_ray, at_once=options.max_concurrent_trials)
        self.execute = execute or (one_by_one if self.base.scale.in_process else on_cluster)
        self.probe = probe or self._probe

    def _has_own_validation(self) -> bool:
        """Whether the data have a validation split of their own. Raises UserError if the data are missing."""
        base = with_changes(self.base, {"data": {"valid_fraction": 0.0}})
        return bool(open_source(base.data, base.seed).shards("valid"))

    def _probe(self, jobs: Sequence[Job]) -> dict[str, float | str]:
        """Measures `ms_an_image` of each job on cores of the cluster, or one by one in this process."""
        if jobs and not self.base.scale.in_process:
            from npdraw_dist.distributed.start import start_ray  # Ray takes seconds to import

            start_ray(self.base.scale.model_copy(update={"num_workers": 1}))
        return dict(map_items(jobs, _named_cost))

    def facts(self) -> dict[str, Any]:
        """The facts that define the comparison. A second start may add kinds, but change nothing else."""
        return {
            "fraction": self.base.data.fraction,
            "core_seconds": self.core_seconds,
            "seeds": self.seeds,
            "trials": {job.name: {"kind": job.kind, "settings": job.settings} for job in self.trials},
            "config": self.base.made(),
        }

    def claim(self) -> dict[str, Any]:
        """Returns the plan in the run folder. The first start writes it; later ones add trials of new kinds.

        Raises UserError, and changes nothing, if the folder holds another sweep.
        """
        facts, claimed = self.facts(), partial(claim_facts, self.run, PLAN)
        if self.run.has(PLAN):
            record = self.run.read_json(PLAN)
            planned = record.get("trials", {})
            kinds = {trial["kind"] for trial in planned.values()}
            kept = {name: trial for name, trial in facts["trials"].items() if trial["kind"] in kinds}
            record = claimed({**facts, "trials": kept})
            if kept != facts["trials"] and not self.run.has(OPENED):
                self.run.write_json({**record, "trials": facts["trials"]}, PLAN)
        return claimed(facts)

    def require_same_data(self, source: Source) -> None:
        """Raises UserError if earlier trainings read other data; else records a new data.path in each run."""
        for store in runs_in(self.run):
            follow(store.read_json("data", MANIFEST), source, self.base, store)

    def note(self) -> str:
        """The cost of the whole comparison, in a line."""
        trainings = self.count + self.seeds + sum(self.longer)  # a kind's largest cost / core_seconds
        hours = trainings * len(self.kinds) * self.core_seconds / 3600
        times = " + ".join(map(str, self.longer))
        return (
            f"{len(self.kinds)} kinds, each {self.count} trials, {self.seeds} seeds of the best and up to "
            f"{times} times as long until it stops improving, {self.core_seconds:g} counted seconds of a "
            f"core each: at most {hours:.1f} hours of a core, besides scores"
        )

    def train(self, jobs: Sequence[Job], with_scores: bool = True) -> list[Job]:
        """Trains the jobs that are neither done nor failed; returns all jobs that are done.

        Raises UserError if some trainings were stopped, since a choice among the others would not be fair.
        """
        if missing := self._missing(jobs, with_scores):
            self.execute(self.run, missing, with_scores)
        if left := self._missing(jobs, with_scores):
            raise UserError(
                f"{len(left)} of {len(jobs)} trainings were stopped, such as {left[0].path}; "
                "the same command resumes them"
            )
        return [job for job in jobs if is_trained(self.run, job, with_scores)]

    def _missing(self, jobs: Sequence[Job], with_scores: bool) -> list[Job]:
        failed = {result.trial for result in read_results(self.run) if result.status == "failed"}
        return [j for j in jobs if j.name not in failed and not is_trained(self.run, j, with_scores)]

    def rates(self, known: dict[str, Any]) -> dict[str, Any]:
        """Trial -> its measured cost `fixed_s` and `ms`, and the budget `images` that follows from the cost.

        Each trial is measured once. A trial whose measurement failed is left out and counts as failed.
        """
        found, starts = dict(known), {job.start().name: job for job in self.trials if job.name not in known}
        trained = self.train([job.start() for job in starts.values()], with_scores=False)
        failed = {result.trial for result in read_results(self.run)}
        todo = [job for job in trained if job.name not in failed]
        costs = self.probe(todo)
        for job in todo:
            trial, ms = starts[job.name], costs[job.name]
            if isinstance(ms, str):
                write_result(self.run, TrialResult(job.name, "failed", job.point, job.settings, reason=ms))
                continue
            rate = Rate.of(ms, job.budget or 0, core_seconds(self.run, job))
            images = rate.images(self.core_seconds, trial.experiment)
            found[trial.name] = {"fixed_s": round(rate.fixed_s, 3), "ms": round(rate.ms, 4), "images": images}
        return found

    def true_budget(self, job: Job, record: dict[str, Any]) -> int:
        """The number of images that each seed of a winner trains on, from the plan if it states one.

        Otherwise it is the trial's budget. The budget is corrected if the trial missed core_seconds by more
        than CLOSE, since a whole trial measures the cost better than a few steps do.
        """
        if job.kind in record.get("budgets", {}) and record["winners"][job.kind] == job.name:
            return int(record["budgets"][job.kind])
        budget, spent = job.budget or 0, core_seconds(self.run, job)
        close = abs(spent / self.core_seconds - 1) <= CLOSE
        if close or images_seen(self.run, job) < budget:
            return budget
        fixed = min(record["rates"][job.name]["fixed_s"], spent / 2)
        rate = Rate(fixed, 1000 * (spent - fixed) / budget)
        return rate.images(self.core_seconds, job.experiment)

    def unfair(self, done: Sequence[Job]) -> list[str]:
        """A warning for each kind whose trials took a time outside FAIR, since its measured costs are wrong.

        Trials that ended before their budget do not count.
        """
        found = []
        for kind in self.kinds:
            whole = [job for job in done if job.kind == kind and images_seen(self.run, job) == job.budget]
            middle = median([core_seconds(self.run, job) / self.core_seconds for job in whole] or [1.0])
            if not FAIR[0] <= middle <= FAIR[1]:
                found.append(
                    f"{kind}: the median of its trials took {middle:.2f} of its {self.core_seconds:g} "
                    "core-seconds; a comparison under another --name measures all rates anew"
                )
        return found

    def winners(self, done: Sequence[Job]) -> dict[str, Job]:
        """The best trial of each kind. Raises UserError if no trial of a kind finished."""
        found = {}
        for kind in self.kinds:
            mine = [job for job in done if job.kind == kind]
            if not mine:
                own = [job for job in self.trials if job.kind == kind]
                names = {name for job in own for name in (job.name, job.start().name)}
                failed = [result.reason for result in read_results(self.run) if result.trial in names]
                reason = next(filter(None, failed), "stopped")
                raise UserError(
                    f"no trial of {kind} finished; the first one failed: {reason} (--retry-failed)"
                )
            found[kind] = min(mine, key=lambda job: (valid_nll(self.run, job), job.name))
        return found

    def finals(self, winners: dict[str, Job]) -> list[dict[str, Any]]:
        """Trains the final runs; returns for each run the facts that `npdraw report` needs.

        Winners are trained with new seeds, since the score of a trial chosen among many is biased. Then the
        first of these seeds is trained for longer, with schedules of the new length, until the
        validation NLL stops improving. The best of these runs is reported, together with whether the longest
        run was still improving and which run failed. Raises UserError if all seeds of a kind failed.
        """
        first, run = self.base.seed + 1, self.run
        seeds = self.train(
            [
                job.with_images(job.budget or 0, "seeds", f"{job.name}-seed-{seed}", seed)
                for seed in range(first, first + self.seeds)
                for job in winners.values()
            ]
        )
        best = {job.kind: job for job in reversed(seeds)}
        if lost := [kind for kind in winners if kind not in best]:
            raise UserError(f"all seeds of {lost[0]} failed (--retry-failed tries them again)")
        improving = dict.fromkeys(winners, True)
        seed_of = {kind: job.experiment.seed for kind, job in best.items()}
        failed: dict[str, str | None] = dict.fromkeys(winners)
        for factor in self.longer:
            jobs = [
                job.with_images(factor * (job.budget or 0), "longer", f"{job.name}-x{factor}", seed_of[kind])
                for kind, job in winners.items()
                if improving[kind]
            ]
            done = self.train(jobs)
            for job in jobs:
                if job not in done:
                    improving[job.kind], failed[job.kind] = False, job.path
                    continue
                improving[job.kind] = valid_nll(run, job) < (1 - GAIN) * valid_nll(run, best[job.kind])
                best[job.kind] = job if improving[job.kind] else best[job.kind]
        return [
            *(self._final(job, "seed") for job in seeds),
            *(
                self._final(best[k], "longest", still_improving=improving[k], failed=failed[k])
                for k in winners
            ),
        ]

    def _final(self, job: Job, role: str, **more: Any) -> dict[str, Any]:
        run = self.run
        return {
            **{"run": job.path, "kind": job.kind, "role": role, "seed": job.experiment.seed},
            "core_seconds": round(core_seconds(run, job), 1),
            "images": images_seen(run, job),
            "valid_nll": valid_nll(run, job),
            **more,
        }

    def result(self, job: Job) -> TrialResult:
        """The row of a trial in results.parquet."""
        store = store_of(self.run, job)
        metrics = store.metrics()
        numbers = {
            "valid_nll": metrics["valid/nll_iwae"],
            "bits_per_dim": metrics["valid/bits_per_dim"],
            "parameters": store.read_json("vae", "manifest.json")["parameters"],
            "seconds": core_seconds(self.run, job),
        }
        return TrialResult(job.name, "finished", job.point, job.settings, numbers)


def run(
    options: Options,
    space: Kinds,
    flags: dict[str, Any],
    execute: Train | None = None,
    probe: Probe | None = None,
) -> None:
    """Runs the comparison that `options` describe. execute, probe: as for `Comparison`. Raises UserError."""
    comparison = Comparison(options, space, flags, execute, probe)
    if options.dry_run:
        for job in comparison.trials:  # a line for each trial, whose first word is the kind
            varied = label({key: value for key, value in job.settings.items() if key != "model.kind"})
            print(f"{job.kind}  {job.name}  {comparison.core_seconds:g} core-seconds  {varied}")
        print(comparison.note(), file=sys.stderr)
        return
    store = comparison.run
    if not store.has(PLAN):
        store.require_own()
    source = None
    if execute is None:  # all trials read the same data, so one config is checked
        first = comparison.trials[0].experiment
        images = RunData(first)
        check(first, store, first.stage_names, images)
        source = images.source(store)
        if source.count("test") == 0:
            raise UserError(
                f"data.source {first.data.source} has no test image, which npdraw report needs; raise "
                f"--data.test_fraction ({first.data.test_fraction:g}), or prepare the data again"
            )
    if not store.has(PLAN):
        store.make_folder()
    with store.lease("comparison"):
        record = comparison.claim()
        if store.has(OPENED):
            raise UserError(
                f"{store.shown()} was compared on the test split, so it trains no more models; "
                "take another --name"
            )
        if record.pop("finals", None) is not None:  # a plan without finals counts as unfinished
            store.write_json(record, PLAN)
        if source is not None:
            comparison.require_same_data(source)
        if options.retry_failed:
            forget_failed(store)
        console.print(comparison.note())
        rates = record["rates"] = comparison.rates(record.get("rates", {}))
        store.write_json(record, PLAN)
        measured = [job for job in comparison.trials if job.name in rates]
        done = comparison.train([j.with_images(rates[j.name]["images"], "trials", j.name) for j in measured])
        for line in comparison.unfair(done):
            console.print(line)
        winners = {
            kind: replace(job, budget=comparison.true_budget(job, record))
            for kind, job in comparison.winners(done).items()
        }
        record["winners"] = {kind: job.name for kind, job in winners.items()}
        record["budgets"] = {kind: job.budget for kind, job in winners.items()}
        store.write_json(record, PLAN)
        record["finals"] = comparison.finals(winners)
        record["spent"] = {job.name: round(core_seconds(store, job), 1) for job in done}
        store.write_json(record, PLAN)
        _write_results(comparison, done, winners)


def _named_cost(job: Job) -> tuple[str, float | str]:
    return job.name, ms_an_image(job)


def _write_results(comparison: Comparison, done: Sequence[Job], winners: dict[str, Job]) -> None:
    """Writes results.parquet and best.yaml; prints the winners."""
    run = comparison.run
    failed = [result for result in read_results(run) if result.status == "failed"]
    write_table(run, [*failed, *map(comparison.result, done)], "valid_nll")
    best = min(winners.values(), key=lambda job: valid_nll(run, job))
    text = dump(with_changes(best.experiment, {"eval": {"split": "test"}}))
    write_text(run.filesystem, run.path(BEST), f"# The best trial by validation, {best.name}.\n{text}")
    for kind, job in winners.items():
        printed.print(f"{kind}: {job.name}, valid NLL {valid_nll(run, job):.2f} ({label(job.settings)})")
    printed.print(f"next: npdraw report --sweeps {run.shown()} --out FOLDER")
