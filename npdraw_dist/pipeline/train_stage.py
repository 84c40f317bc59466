"""What the stages `prior` and `vae` share: data to the workers, the run, its summary.

Training data up to `data.cache_mb` is read once into the memory of each worker; more is streamed.
Shapes: N images, C channels, H x W pixels, T steps.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from npdraw_dist.config.resume import batch_of_resume
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.data.parses import Parses
from npdraw_dist.pipeline.augment import moves
from npdraw_dist.pipeline.bank import load_bank
from npdraw_dist.pipeline.feeds import is_streamed, memory_feed, say_how_read, stream_feed
from npdraw_dist.pipeline.painting import painter
from npdraw_dist.pipeline.progress import console, results, stage_progress
from npdraw_dist.pipeline.stage_display import StageDisplay, begin_events
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import Context
from npdraw_dist.training.events import Events
from npdraw_dist.training.feed import Feed
from npdraw_dist.training.here import Kept, run_here
from npdraw_dist.training.loop import Budget, Data, train
from npdraw_dist.training.metrics_log import RECENT_ROWS, Journal, Record, read_metrics
from npdraw_dist.training.watch import Fall
from npdraw_dist.training.workers import Workers, require_compiler, worker_here

if TYPE_CHECKING:
    from ray.train import CheckpointConfig, UserCallback

Start = TypeVar("Start")

# By what a stage's checkpoints are compared.
CRITERIA = {
    "prior": checkpoint.Criterion("valid/nll", "min"),
    "vae": checkpoint.Criterion("valid/elbo", "max"),
}
MOST_REPORTS = 1000  # validations of a stage


class Held(NamedTuple):
    """A value that stays in this process."""

    value: Any


def _put(experiment: Experiment, value: object) -> Any:
    if experiment.scale.here:
        return Held(value)
    import ray

    return ray.put(value)


def _get(given: Any) -> Any:
    if isinstance(given, Held):
        return given.value
    import ray

    return ray.get(given)


@dataclass(frozen=True)
class StageJob(Generic[Start]):
    """What every worker of a stage is given. `Any` is a reference of Ray's, or `Held`.

    make_objective builds the module from the experiment and what `start` refers to. valid: a Batch. train:
    the Batch of all `parses` of the training split if it fits into memory; None if they are streamed. parts:
    the bank (K, C, P, P), if moved images are parsed anew or pictures are shown.
    """

    stage: str
    experiment: Experiment
    make_objective: Callable[[Experiment, Start], Objective]
    start: Any
    valid: Any
    train: Any
    parses: Parses
    parts: Any

    @property
    def images(self) -> int:
        """The training budget of the stage."""
        return self.experiment.section_of(self.stage).images


@dataclass(frozen=True)
class Trained:
    """A finished training: its summary for the manifest, and the selected checkpoint.

    record: the metrics at that checkpoint.
    """

    summary: dict[str, Any]
    checkpoint_name: str
    tensors: dict[str, Tensor]
    record: Record


def run_stage(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: Callable[[Experiment, Start], Objective],
    start: Start,
    callbacks: Sequence["UserCallback"] = (),
) -> Trained:
    """Trains a stage as a Ray Train run, or in this process.

    The checkpoint is the best or the last one (`train.select`). start: what `make_objective` starts from,
    sent to the workers once. `callbacks` see each report of Ray Train. Raises UserError if the loss turned
    non-finite.
    """
    own, asked = experiment, store.as_asked(experiment)
    begun = store.config() if store.has("config.yaml") else asked  # what trials share has no config.yaml
    experiment = with_settings_of(stage, asked, begun)
    settings = experiment.train
    require_compiler(settings.compile)
    job = _make_job(experiment, store, stage, make_objective, start, own.validated_in(stage))
    workers = _workers(experiment, reading=job.train is None)
    if workers.gpu and settings.precision != own.train.precision:
        raise UserError(
            f"train.precision: {own.train.precision} -> {settings.precision} changes the result on a GPU; "
            "leave it as it was, or take another --name"
        )
    by = (
        f"this process, {workers.cpus} thread{'s' * (workers.cpus > 1)}"
        if experiment.scale.here
        else str(workers)
    )
    console.print(f"{stage}: {by}, {_micro_batches(experiment, asked, workers)}")
    started = time.perf_counter()
    with stage_progress(stage, job.images) as show:
        display = StageDisplay.of(store, stage, show)
        if experiment.scale.here:
            kept = Kept(experiment.train.keep_checkpoints, CRITERIA[stage])
            summary = run_here(
                _work, job, store.filesystem, store.path(stage), experiment.scale, kept, display
            )
        else:
            summary = _run_on_ray(job, workers, store, callbacks, display)
    if "stopped_at_step" in summary:
        raise UserError(
            f"the loss of stage {stage} turned non-finite at step {summary['stopped_at_step']}; the last "
            f"good checkpoint, if there is one, is kept in {store.path(stage)} (lower the learning rate)"
        )
    _complete_metrics(store, stage)
    found = _selected_checkpoint(store, stage, settings.select)
    tensors, progress = found.loaded
    # Of this command by its own clock: the workers' machines may have others.
    summary["seconds"] = round(summary.pop("earlier_s") + time.perf_counter() - started, 2)
    summary["core_seconds"] = round(summary["core_seconds"], 2)
    summary["selected_at"] = progress["record"]["images_seen"]
    if (note := fall_note(summary)) is not None:
        results.print(f"[bold red]WARNING {stage}: {note}; passed on: {_passed_on(experiment, summary)}")
    return Trained(summary, found.path.rpartition("/")[2], tensors, progress["record"])


def _workers(experiment: Experiment, reading: bool) -> Workers:
    if experiment.scale.here:
        return worker_here(experiment.scale)
    from npdraw_dist.training.resources import plan_workers

    return plan_workers(experiment.scale, reading)


def _run_on_ray(
    job: StageJob[Any],
    workers: Workers,
    store: Store,
    callbacks: Sequence["UserCallback"],
    display: StageDisplay,
) -> dict[str, Any]:
    """The summary of rank 0 of a Ray Train run."""
    from npdraw_dist.training.launch import TrainRun, run_training

    experiment = job.experiment
    run = TrainRun(
        _work,
        job,
        job.images,
        workers,
        experiment.scale,
        _kept_checkpoints(experiment, job.stage),
        store.filesystem,
        store.root,
        job.stage,
        callbacks,
        tuple(store.landmarks()),
    )
    return run_training(run, display)


def _kept_checkpoints(experiment: Experiment, stage: str) -> "CheckpointConfig":
    """The best ones, whichever weights the stage passes on; Ray Train keeps the last one besides."""
    from ray.train import CheckpointConfig

    return CheckpointConfig(
        num_to_keep=experiment.train.keep_checkpoints,
        checkpoint_score_attribute=CRITERIA[stage].name,
        checkpoint_score_order=CRITERIA[stage].order,
    )


def with_settings_of(stage: str, experiment: Experiment, begun: Experiment | None = None) -> Experiment:
    """`experiment` whose section `train` has the batch of this stage and its share of moved images.

    begun: how the run began, if it did (`config.resume.batch_of_resume`).
    """
    begun = begun or experiment
    size, micro = batch_of_resume(begun, experiment, stage)
    own = experiment.section_of(stage).augmented
    changes = {
        "batch_size": size,
        "micro_batch": micro,
        "eval_batches": -(-begun.validated_in(stage) // micro),
        "augmented": experiment.train.augmented if own is None else own,
    }
    train = experiment.train.model_copy(update=changes)
    return experiment.model_copy(update={"train": train})


def fall_note(manifest: Mapping[str, Any]) -> str | None:
    """How far below its best the validation of a stage ended; None if it did not."""
    fall = manifest.get("fell_from_best")
    ended = "; training ended there" if manifest.get("ended_early") else ""
    return None if fall is None else f"validation fell: {Fall(**fall)}{ended}"


def _passed_on(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """Which weights a stage whose validation fell passes on, for a person."""
    at = f"those after {summary['selected_at']:,} images"
    if experiment.train.select == "best":
        return f"the best weights, {at}"
    return f"the last weights, {at}, as train.select last says; the best checkpoint is kept beside them"


def _complete_metrics(store: Store, stage: str) -> None:
    """metrics.jsonl and TensorBoard events with each validation once, whatever was killed."""
    where = store.filesystem, store.path(stage)
    rows, recent = Journal(*where).compact(), Journal(*where, RECENT_ROWS).compact()
    Events(*where).merge([*recent, *rows])


def _make_job(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: Callable[[Experiment, Start], Objective],
    start: Start,
    validated: int,
) -> StageJob[Start]:
    """validated: the most images of a validation."""
    parses = store.parses("train")
    streamed = is_streamed(experiment, len(parses))
    say_how_read(experiment, stage, len(parses), streamed)
    settings, of_parts = experiment.train, "bank" in experiment.stage_names
    shown = settings.pictures > 0 and store.has("bank", "manifest.json")  # parses alone train a prior too
    bank = load_bank(experiment, store, stage) if of_parts and (settings.augmented > 0 or shown) else None
    begin_events(experiment, store, stage, CRITERIA[stage].name, bank)
    return StageJob(
        stage,
        experiment,
        make_objective,
        _put(experiment, start),
        _put(experiment, validation_images(store, validated, experiment.seed)),
        None if streamed else _put(experiment, parses.in_id_order()),
        parses,
        None if bank is None else _put(experiment, bank.parts.numpy()),
    )


def validation_images(store: Store, count: int, seed: int) -> Batch:
    """The images of every validation: a sample of the whole split, whose first rows may be of one class.

    None of the images if the split is empty.
    """
    parses = store.parses("valid")
    if len(parses) == 0:
        return store.parses("train").read(0, 1)[:0]
    return parses.sample(count, seed)


def _selected_checkpoint(
    store: Store, stage: str, select: str
) -> checkpoint.Found[tuple[checkpoint.Tensors, checkpoint.Progress]]:
    run = store.path(stage)
    if select == "best":
        paths = checkpoint.by_score(store.filesystem, run, CRITERIA[stage])
    else:
        paths = checkpoint.by_age(store.filesystem, run)
    found = checkpoint.first_readable(store.filesystem, run, paths, checkpoint.read)
    assert found is not None, "a finished run has a checkpoint"
    for line in found.damaged:
        results.print(f"{stage}: damaged, not used: {line}", markup=False)
    return found


def selected_record(store: Store, stage: str) -> Record:
    """The record in metrics.jsonl of the weights that a finished stage selected."""
    records = read_metrics(store.filesystem, store.path(stage))
    seen = store.read_json(stage, "manifest.json")["selected_at"]
    return next(record for record in reversed(records) if record["images_seen"] == seen)


def _micro_batches(experiment: Experiment, asked: Experiment, workers: Workers) -> str:
    """How the global batch, which does not depend on the number of workers, is divided among them.

    asked: the settings, of which `experiment` has those of the stage.
    """
    settings, given = experiment.train, asked.train.micro_batch
    batch, micro = settings.batch_size, settings.micro_batch
    count = batch // micro
    each = sorted({-(-count // number) for number in (workers.least, workers.most)})
    most = " to ".join(map(str, each))
    lowered = "" if micro == min(given, batch) else f" (train.micro_batch {given} is lowered to it)"
    scale = "" if settings.rate_scale == 1 else f"; learning rates x {settings.rate_scale:.3g}"
    parts = f"{count} micro-batches of {micro}{lowered}, at most {most} a worker"
    return f"a global batch of {batch} in {parts}{scale}"


def _feed(job: StageJob[Any], context: Context) -> Feed:
    """The training data of one rank."""
    ranks = (context.rank, context.world_size)
    if job.train is not None:
        return memory_feed(_get(job.train), job.experiment, *ranks)
    if not job.experiment.scale.here:
        from npdraw_dist.training.launch import quiet_logs

        quiet_logs()
    return stream_feed(job.parses, job.experiment, *ranks)


def report_interval(images: int, every: int) -> int:
    """Images from one validation and checkpoint to the next, for a budget of `images` and a wish of `every`.

    Each takes a second and more, and a file or two in the run folder: a budget has at most MOST_REPORTS.
    """
    return max(every, -(-images // MOST_REPORTS))


def _work(job: StageJob[Any], context: Context) -> dict[str, Any]:
    """One rank of a training run; returns the loop's summary."""
    experiment = job.experiment
    torch.manual_seed(experiment.seed)  # the initial weights, the same on every rank
    objective = job.make_objective(experiment, _get(job.start))
    bank = None
    if job.parts is not None:
        bank = PartBank(torch.tensor(_get(job.parts), device=context.device))
    paint = painter(experiment, bank)
    data = Data(_feed(job, context), _get(job.valid), moves(experiment, bank, job.stage), paint)
    settings = experiment.train
    patience = settings.patience if settings.select == "best" else 0
    every = report_interval(job.images, settings.eval_every_images)
    budget = Budget(job.images, every, CRITERIA[job.stage], patience)
    return train(objective, data, settings, budget, experiment.seed, context)
