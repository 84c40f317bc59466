"""What the stages `prior` and `vae` share: data to the workers, the run, its summary."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.process import device_here
from npdraw_dist.distributed.resources import Workers, plan_workers, worker_here
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline import stage_job
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.progress import Show, console, results, stage_progress
from npdraw_dist.pipeline.store import CONFIG, Store, fingerprint_of
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import RunContext, run_here
from npdraw_dist.training.early_stopping import fall_text
from npdraw_dist.training.metrics_log import Events, Record, read_metrics

STOPPED = "stopped"  # folder of the model that a stage had before its loss turned non-finite
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
    settings, scale = experiment.train, experiment.scale
    job = _make_job(experiment, store, stage, make_objective, start)
    workers = plan(scale)
    if workers.gpu:
        _require_precision(settings.precision, store)
    console.print(f"{stage}: {_shares(job, workers)}")
    started = time.perf_counter()
    with stage_progress(stage, job.images) as show:
        display, criterion = StageDisplay(store, stage, show), stage_job.CRITERIA[stage]
        if scale.here:
            device, where = device_here(scale.use_gpu), (store.filesystem, store.path(stage))
            context = RunContext(*where, device, criterion, display)
            summary = run_here(stage_job.work, job, context, scale)
        else:
            from npdraw_dist.distributed.run import TrainRun, run_training

            run = TrainRun(
                worker=stage_job.work,
                job=job,
                workers=workers,
                scale=scale,
                criterion=criterion,
                filesystem=store.filesystem,
                storage=store.root,
                name=stage,
                callbacks=callbacks,
                folders=tuple(store.landmarks()),
            )
            summary = run_training(run, display)
    # Measured by the clock of this command: the workers' machines may have other times.
    return _trained(experiment, store, stage, summary, time.perf_counter() - started)


def _require_precision(precision: str, store: Store) -> None:
    """Raises UserError if a resumed run has another precision, which changes the result on a GPU alone."""
    before = store.config().train.precision if store.has(CONFIG) else precision
    if precision != before:
        raise UserError(
            f"train.precision: {before} -> {precision} changes the result on a GPU; leave it as it was, or "
            "take another --name"
        )


def plan(scale: ScaleConfig) -> Workers:
    """The workers in the running Ray, or without Ray. Raises UserError if few fit."""
    if scale.here:
        return worker_here(scale)
    return plan_workers(scale, lambda line: console.print(line, markup=False))


def _trained(
    experiment: Experiment, store: Store, stage: str, summary: dict[str, Any], seconds: float
) -> Trained:
    """summary: what the loop of rank 0 returned. Prints a warning if validation fell."""
    select = experiment.train.select
    if "stopped_at_step" in summary:
        raise UserError(
            f"the loss of stage {stage} turned non-finite too often, at last at step "
            f"{summary['stopped_at_step']}; {keep_stopped(experiment, store, stage)}"
        )
    found = selected_checkpoint(store, stage, select)
    tensors, progress = found.loaded
    if not math.isfinite(progress["record"].get(stage_job.CRITERIA[stage].name, 0.0)):
        raise UserError(
            f"the loss of stage {stage} turned non-finite, and its weights are of no use; "
            f"{keep_stopped(experiment, store, stage)}"
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
    if (note := fall_note(summary)) is not None:
        passed_on = f"the {select} weights, those after {seen:,} images"
        if select == "last":
            passed_on += ", as train.select last says; the best checkpoint is kept beside them"
        results.print(f"[bold red]WARNING {stage}: {note}; passed on: {passed_on}")
    return manifest, tensors, progress["record"]


def keep_stopped(experiment: Experiment, store: Store, stage: str) -> str:
    """Writes the newest checkpoint with finite weights as the model `stopped/`; returns what a user can do.

    Networks that no stage has trained yet have random weights in it.
    """
    lower, run = f"--{stage}.learning_rate", (store.filesystem, store.path(stage))
    try:
        found = checkpoint.first_readable(*run, checkpoint.by_age(*run), partial(_finite, stage))
    except UserError:
        found = None
    if found is None:
        return f"no checkpoint has finite weights; take another --name and a lower {lower}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        model: Any = make_model(spec_of(experiment))
    if isinstance(model, NPDraw) and store.has("bank", "manifest.json"):
        model.set_bank(load_bank(experiment, store))
    tensors, record = found.loaded
    trained, prefix = (model.prior, "prior.") if stage == "prior" else (model, "model.")
    trained.load_state_dict(checkpoint.weights(tensors, prefix))
    with store.writing(STOPPED) as folder:
        model.save_pretrained(folder)
    relaxed = experiment.vae.relaxed_share * experiment.vae.images
    left = relaxed if stage == "prior" else max(relaxed - record["images_seen"], 0)
    return (
        f"another --name with --init.model {store.shown(STOPPED)} --vae.relaxed_images {left:.0f} and a "
        f"lower {lower} starts from the newest checkpoint with finite weights"
    )


def _finite(stage: str, folder: Path) -> tuple[checkpoint.Tensors, Record]:
    """A checkpoint. Raises UserError if its weights or its validation are not finite."""
    tensors, progress = checkpoint.read(folder)
    score = progress["record"].get(stage_job.CRITERIA[stage].name, 0.0)
    if not math.isfinite(score) or not all(value.isfinite().all() for value in tensors.values()):
        raise UserError("it is not finite")
    return tensors, progress["record"]


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
    streamed = stage_job.is_streamed(experiment, stage, len(parses))
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
    events.begin(flat(experiment.made()), stage_job.CRITERIA[stage].name, pictures)
    valid = validation_images(store, experiment.train.eval_images, experiment.seed, experiment)
    train = None if streamed else parses.in_id_order()
    given = stage_job.Given(start, valid, train, None if bank is None else bank.parts)
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


def _shares(job: stage_job.StageJob, workers: Workers) -> str:
    """Who trains, and how the global batch, which does not depend on their number, is divided among them."""
    settings, batch = job.settings, job.settings.batch_size
    shares = sorted({-(-batch // count) for count in (workers.least, workers.most)})
    who = f"this process, {workers.cpus} thread{'s' * (workers.cpus > 1)}"
    scale = "" if settings.rate_scale == 1 else f"; learning rates x {settings.rate_scale:.3g}"
    return (
        f"{who if job.experiment.scale.here else workers}, a global batch of {batch}, at most "
        f"{' to '.join(map(str, shares))} a worker, in micro-batches of {settings.micro_batch} or less{scale}"
    )
