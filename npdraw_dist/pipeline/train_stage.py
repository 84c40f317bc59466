"""Trains the stage `prior` or `vae` and selects its checkpoint. Both stages share this code."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from npdraw_dist.config.load import flat
from npdraw_dist.config.schema import Experiment, ScaleConfig
from npdraw_dist.config.spec import spec_of
from npdraw_dist.core.parts import Batch
from npdraw_dist.distributed.resources import Workers, plan_workers, worker_in_process
from npdraw_dist.nn.hub import make_model
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.pipeline import stage_job
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.progress import Show, console, results, stage_progress
from npdraw_dist.pipeline.stage import Watch
from npdraw_dist.pipeline.stage_job import CRITERIA, StageJob
from npdraw_dist.pipeline.store import CONFIG, Store, fingerprint_of
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import local_device
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import RunContext, run_in_process
from npdraw_dist.training.early_stopping import fall_text
from npdraw_dist.training.metrics_log import Events, Record, read_metrics

STOPPED = "stopped"  # folder for the last finite weights of a stage whose loss became non-finite
LARGEST_BANK = 400  # largest number of parts in TensorBoard's picture of a bank
# The manifest of a finished training, and the tensors and metrics of the selected checkpoint.
Trained = tuple[dict[str, Any], checkpoint.Tensors, Record]


@dataclass(frozen=True)
class StageDisplay:
    """Shows the progress and the messages of a stage, and passes its metrics on. Used by the driver."""

    stage: str
    bar: Show
    watch: Watch

    def show(self, images_seen: int, images_per_s: float, note: str) -> None:
        self.bar(images_seen, images_per_s, note)

    def say(self, line: str) -> None:
        console.print(f"{self.stage}: {line}", markup=False)  # the text of an error can look like markup

    def record(self, row: Record) -> None:
        self.watch(row, self.stage)


def run_stage(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: stage_job.MakeObjective,
    start: stage_job.Start,
    watch: Watch | None = None,
) -> Trained:
    """Trains a stage as a Ray Train run, or in this process; returns its selected checkpoint.

    `train.select` selects the best or the last one. start: the tensors from which `make_objective` starts,
    sent to each worker only once. Raises UserError if the loss became non-finite.
    """
    watch = watch or Watch()
    scale, criterion = experiment.scale, CRITERIA[stage]
    job = _make_job(experiment, store, stage, make_objective, start)
    workers = plan(scale)
    if workers.gpu:
        _require_precision(experiment.train.precision, store)
    console.print(f"{stage}: {_shares(experiment, stage, workers)}")
    started = time.perf_counter()
    with stage_progress(stage, experiment.section_of(stage).images) as show:
        display = StageDisplay(stage, show, watch)
        if scale.in_process:
            device, where = local_device(scale.use_gpu), (store.filesystem, store.path(stage))
            context = RunContext(*where, device, criterion, display)
            summary = run_in_process(stage_job.work, job, context, scale)
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
                callbacks=watch.ray_callbacks,
                folders=tuple(store.landmarks()),
            )
            summary = run_training(run, display)
    # This process measures the seconds, since the clocks of the workers' machines can differ.
    return _trained(experiment, store, stage, summary, time.perf_counter() - started)


def _require_precision(precision: str, store: Store) -> None:
    """Raises UserError if a resumed run had another precision, which changes the result on a GPU."""
    before = store.config().train.precision if store.has(CONFIG) else precision
    if precision != before:
        raise UserError(
            f"train.precision: {before} -> {precision} changes the result on a GPU; leave it as it was, or "
            "take another --name"
        )


def plan(scale: ScaleConfig) -> Workers:
    """Plans the workers in the running Ray, or in this process. Raises UserError if too few workers fit."""
    if scale.in_process:
        return worker_in_process(scale)
    return plan_workers(scale, lambda line: console.print(line, markup=False))


def _trained(
    experiment: Experiment, store: Store, stage: str, summary: dict[str, Any], seconds: float
) -> Trained:
    """Loads the result of a training; warns if validation fell. Raises UserError as `run_stage` does."""
    select, step = experiment.train.select, summary.get("stopped_at_step")
    if step is None:
        found = selected_checkpoint(store, stage, select)
        tensors, progress = found.loaded
    if step is not None or not math.isfinite(progress["record"].get(CRITERIA[stage].name, 0.0)):
        when = ", and its weights are of no use" if step is None else f" too often, at last at step {step}"
        advice = keep_stopped(experiment, store, stage)
        raise UserError(f"the loss of stage {stage} turned non-finite{when}; {advice}")
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
            passed_on += ", because of train.select last; the best checkpoint is kept, too"
        results.print(f"[bold red]WARNING {stage}: {note}; the stage passes on {passed_on}")
    return manifest, tensors, progress["record"]


def keep_stopped(experiment: Experiment, store: Store, stage: str) -> str:
    """Writes the newest checkpoint with finite weights as the model `stopped/`; returns advice for the user.

    Networks of the model that no stage has trained yet get random weights.
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
    """Loads a checkpoint. Raises UserError if its weights or its validation score is not finite."""
    tensors, progress = checkpoint.read(folder)
    score = progress["record"].get(CRITERIA[stage].name, 0.0)
    if not math.isfinite(score) or not all(value.isfinite().all() for value in tensors.values()):
        raise UserError("its weights or its score are not finite")
    return tensors, progress["record"]


def fall_note(manifest: Mapping[str, Any]) -> str | None:
    """States how far validation ended below its best; None if it did not end far below (`far_below`)."""
    fall = manifest.get("fell_from_best")
    ended = "; training ended there" if manifest.get("ended_early") else ""
    return None if fall is None else f"validation fell: {fall_text(fall)}{ended}"


def _make_job(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: stage_job.MakeObjective,
    start: stage_job.Start,
) -> StageJob:
    parses = store.parses("train", experiment)
    streamed = stage_job.is_streamed(experiment, stage, len(parses))
    size = len(parses) * stage_job.row_bytes(experiment) / 2**20
    console.print(
        f"{stage}: {len(parses):,} training images of {size:,.1f} MB are "
        f"{'streamed' if streamed else 'read into memory'} (data.cache_mb {experiment.data.cache_mb:g})"
    )
    # A prior can be trained on parses without a bank, unless images are augmented.
    needs_bank = experiment.train.augmented > 0 or store.has("bank", "manifest.json")
    bank = load_bank(experiment, store) if needs_bank and "bank" in experiment.stage_names else None
    pictures = {}
    if bank is not None:
        pictures["bank"] = stage_job.sheet(F.interpolate(bank.parts[:LARGEST_BANK], scale_factor=4), 20)
    events = Events(store.filesystem, store.path(stage))
    events.begin(flat(experiment.made()), CRITERIA[stage].name, pictures)
    return StageJob(
        stage,
        experiment,
        make_objective,
        start,
        parses,
        train=None if streamed else parses.in_id_order(),
        valid=validation_images(store, experiment.train.eval_images, experiment.seed, experiment),
        parts=None if bank is None else bank.parts,
    )


def validation_images(store: Store, count: int, seed: int, experiment: Experiment | None = None) -> Batch:
    """A random sample of the validation split, whose first rows may all have one class.

    The sample is empty if the split is empty. experiment: as in `Store.parses`.
    """
    parses = store.parses("valid", experiment)
    if len(parses) == 0:
        return store.parses("train", experiment).sample(1, seed)[:0]
    return parses.sample(count, seed)


def selected_checkpoint(
    store: Store, stage: str, select: str
) -> checkpoint.Found[tuple[checkpoint.Tensors, checkpoint.Progress]]:
    """The best or the last readable checkpoint of a stage. Prints which checkpoints are damaged."""
    run = store.filesystem, store.path(stage)
    paths = checkpoint.by_score(*run, CRITERIA[stage]) if select == "best" else checkpoint.by_age(*run)
    found = checkpoint.first_readable(*run, paths, checkpoint.read)
    assert found is not None, "a finished run has a checkpoint"
    for line in found.damaged:
        results.print(f"{stage}: a damaged checkpoint is not used: {line}", markup=False)
    return found


def selected_record(store: Store, stage: str) -> Record:
    """The row of metrics.jsonl for the checkpoint that a finished stage selected."""
    records = read_metrics(store.filesystem, store.path(stage))
    seen = store.read_json(stage, "manifest.json")["selected_at"]
    return next(record for record in reversed(records) if record["images_seen"] == seen)


def _shares(experiment: Experiment, stage: str, workers: Workers) -> str:
    """States which workers train, and how they divide the global batch, whose size is always the same."""
    settings = experiment.train_of(stage)
    shares = sorted({-(-settings.batch_size // count) for count in (workers.least, workers.most)})
    own = f"this process, {workers.cpus} thread{'s' * (workers.cpus > 1)}"
    who = own if experiment.scale.in_process else workers
    largest = settings.micro_batch
    micro = "in automatic micro-batches" if largest == "auto" else f"in micro-batches of {largest} or less"
    scale = "" if settings.rate_scale == 1 else f"; learning rates x {settings.rate_scale:.3g}"
    return (
        f"{who}, a global batch of {settings.batch_size}, at most "
        f"{' to '.join(map(str, shares))} a worker, {micro}{scale}"
    )
