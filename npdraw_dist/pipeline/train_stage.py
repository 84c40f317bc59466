"""What the stages `prior` and `vae` share: data to the workers, the run, its summary."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.process import device_here
from npdraw_dist.pipeline import stage_job
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.progress import Show, console, results, stage_progress
from npdraw_dist.pipeline.store import BROKEN, Store, fingerprint_of
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import RunContext, run_here
from npdraw_dist.training.early_stopping import fall_text
from npdraw_dist.training.metrics_log import Events, Record, read_metrics
from npdraw_dist.training.workers import Workers, worker_here

# What the manifest says of a finished training, and the weights and metrics that were selected.
Trained = tuple[dict[str, Any], checkpoint.Tensors, Record]


@dataclass(frozen=True)
class StageDisplay:
    """Shows progress and lines of a stage on the console of the driver; passes rows of metrics on."""

    store: Store
    stage: str
    bar: Show

    def show(self, images_seen: int, images_per_s: float, note: str) -> None:
        self.bar(images_seen, images_per_s, note)

    def say(self, line: str) -> None:
        console.print(f"{self.stage}: {line}", markup=False)  # an error's text can look like markup

    def record(self, row: Record) -> None:
        try:
            for watch in self.store.watchers:
                watch(row, self.stage)
        except Exception as error:
            self.store.failed = error
            raise


def run_stage(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: stage_job.MakeObjective,
    start: stage_job.Start,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Trains a stage as a Ray Train run, or in this process.

    The checkpoint is the best or the last one (`train.select`). start: what `make_objective` starts from,
    sent to the workers once. `callbacks` see each report of Ray Train. Raises UserError if the loss turned
    non-finite.
    """
    own, experiment = experiment, with_settings_of(stage, store.as_asked(experiment))
    settings, scale = experiment.train, experiment.scale
    job = _make_job(experiment, store, stage, make_objective, start)
    workers = plan(scale)
    if workers.gpu and settings.precision != own.train.precision:
        raise UserError(
            f"train.precision: {own.train.precision} -> {settings.precision} changes the result on a GPU; "
            "leave it as it was, or take another --name"
        )
    console.print(f"{stage}: {_shares(experiment, workers)}")
    started = time.perf_counter()
    with stage_progress(stage, job.images) as show:
        display, criterion = StageDisplay(store, stage, show), stage_job.CRITERIA[stage]
        if scale.here:
            device, where = device_here(scale.use_gpu), (store.filesystem, store.path(stage))
            context = RunContext(*where, device, criterion, display)
            summary = run_here(stage_job.work, job, context, scale)
        else:
            from npdraw_dist.training.launch import TrainRun, run_training

            who, whose = (workers, scale, criterion), (store.filesystem, store.root, stage)
            folders = tuple(store.landmarks())
            run = TrainRun(stage_job.work, job, *who, *whose, callbacks, folders)
            summary = run_training(run, display)
    # Measured by the clock of this command: the workers' machines may have other times.
    return _trained(own, store, stage, settings.select, summary, time.perf_counter() - started)


def plan(scale: ScaleConfig) -> Workers:
    """The workers in the running Ray, or without Ray. Raises UserError if few fit."""
    if scale.here:
        return worker_here(scale)
    from npdraw_dist.training.cluster import plan_workers

    return plan_workers(scale, lambda line: console.print(line, markup=False))


def _trained(
    experiment: Experiment, store: Store, stage: str, select: str, summary: dict[str, Any], seconds: float
) -> Trained:
    """summary: of the loop, of rank 0. Prints a warning if validation fell."""
    if "stopped_at_step" in summary:
        store.write_json({"stage": stage, "step": summary["stopped_at_step"]}, BROKEN)
        raise UserError(
            f"the loss of stage {stage} turned non-finite too often, at last at step "
            f"{summary['stopped_at_step']}; the last checkpoint, if there is one, is kept in "
            f"{store.shown(stage)}, and the same command with a lower --{stage}.learning_rate goes on"
        )
    found = selected_checkpoint(store, stage, select)
    tensors, progress = found.loaded
    if not math.isfinite(progress["record"].get(stage_job.CRITERIA[stage].name, 0.0)):
        store.write_json({"stage": stage, "step": progress["record"]["step"]}, BROKEN)
        raise UserError(
            f"the loss of stage {stage} turned non-finite, and its weights are of no use; delete "
            f"{store.shown(stage)}, and give the same command with a lower --{stage}.learning_rate"
        )
    seen, earlier_s = progress["record"]["images_seen"], summary.pop("earlier_s")
    manifest = {
        "fingerprint": fingerprint_of(experiment, stage),
        "checkpoint": found.path.rpartition("/")[2],
        **summary,
        "seconds": round(earlier_s + seconds, 2),
        "core_seconds": round(summary["core_seconds"], 2),
        "validation_core_seconds": round(summary["validation_core_seconds"], 2),
        "selected_at": seen,
    }
    if store.asked:  # what config.yaml says otherwise, such as a lower rate after a loss that was not finite
        manifest["asked"] = store.asked
    if (note := fall_note(summary)) is not None:
        passed_on = f"the {select} weights, those after {seen:,} images"
        if select == "last":
            passed_on += ", as train.select last says; the best checkpoint is kept beside them"
        results.print(f"[bold red]WARNING {stage}: {note}; passed on: {passed_on}")
    return manifest, tensors, progress["record"]


def with_settings_of(stage: str, experiment: Experiment) -> Experiment:
    """`experiment` whose section `train` has the batch of this stage."""
    changes = {"batch_size": experiment.batch_of(stage)}
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=changes)})


def fall_note(manifest: Mapping[str, Any]) -> str | None:
    """How far below its best the validation of a stage ended; None if it did not."""
    fall = manifest.get("fell_from_best")
    ended = "; training ended there" if manifest.get("ended_early") else ""
    return None if fall is None else f"validation fell: {fall_text(fall)}{ended}"


def _make_job(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: stage_job.MakeObjective,
    start: stage_job.Start,
) -> stage_job.StageJob:
    parses = store.parses("train", experiment)
    streamed = stage_job.is_streamed(experiment, len(parses))
    size = len(parses) * stage_job.row_bytes(experiment) / 2**20
    console.print(
        f"{stage}: {len(parses):,} training images of {size:,.1f} MB are "
        f"{'streamed' if streamed else 'read into memory'} (data.cache_mb {experiment.data.cache_mb:g})"
    )
    shown = store.has("bank", "manifest.json")  # parses alone train a prior too
    with_bank = "bank" in experiment.stage_names and (experiment.train.augmented > 0 or shown)
    bank = load_bank(experiment, store) if with_bank else None
    pictures = {} if bank is None else {"bank": stage_job.bank_sheet(bank)}
    events = Events(store.filesystem, store.path(stage))
    events.begin(flat(experiment.deciding()), stage_job.CRITERIA[stage].name, pictures)
    valid = validation_images(store, experiment.train.eval_images, experiment.seed, experiment)
    train = None if streamed else parses.in_id_order()
    given: Any = stage_job.Given(start, valid, train, None if bank is None else bank.parts)
    if not experiment.scale.here:
        import ray

        given = ray.put(given)  # the workers fetch it once a node
    return stage_job.StageJob(stage, experiment, make_objective, parses, given)


def validation_images(store: Store, count: int, seed: int, experiment: Experiment | None = None) -> Batch:
    """A sample of the whole validation split, whose first rows may be of one class; empty if it is.

    experiment: as of `Store.parses`.
    """
    parses = store.parses("valid", experiment)
    if len(parses) == 0:
        return store.parses("train", experiment).sample(1, seed)[:0]
    return parses.sample(count, seed)


def selected_checkpoint(
    store: Store, stage: str, select: str
) -> checkpoint.Found[tuple[checkpoint.Tensors, checkpoint.Progress]]:
    """The best or the last checkpoint of a stage that can be read; says which cannot."""
    run = store.filesystem, store.path(stage)
    best = select == "best"
    paths = checkpoint.by_score(*run, stage_job.CRITERIA[stage]) if best else checkpoint.by_age(*run)
    found = checkpoint.first_readable(*run, paths, checkpoint.read)
    assert found is not None, "a finished run has a checkpoint"
    for line in found.damaged:
        results.print(f"{stage}: damaged, not used: {line}", markup=False)
    return found


def selected_record(store: Store, stage: str) -> Record:
    """The record in metrics.jsonl of the weights that a finished stage selected."""
    records = read_metrics(store.filesystem, store.path(stage))
    seen = store.read_json(stage, "manifest.json")["selected_at"]
    return next(record for record in reversed(records) if record["images_seen"] == seen)


def _shares(experiment: Experiment, workers: Workers) -> str:
    """Who trains, and how the global batch, which does not depend on their number, is divided among them."""
    settings, batch = experiment.train, experiment.train.batch_size
    shares = sorted({-(-batch // count) for count in (workers.least, workers.most)})
    who = f"this process, {workers.cpus} thread{'s' * (workers.cpus > 1)}"
    scale = "" if settings.rate_scale == 1 else f"; learning rates x {settings.rate_scale:.3g}"
    return (
        f"{who if experiment.scale.here else workers}, a global batch of {batch}, at most "
        f"{' to '.join(map(str, shares))} a worker, in micro-batches of {settings.micro_batch} or less{scale}"
    )
