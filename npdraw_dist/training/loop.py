"""The training loop of prior and VAE, on each rank or in one process (`Context`). Budgets count images."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.core.noise import Ahead, Noise, dropout_noise
from npdraw_dist.core.objective import Objective
from npdraw_dist.core.parts import Batch
from npdraw_dist.system.process import refuse_tf32
from npdraw_dist.training import checkpoint
from npdraw_dist.training.checkpoint import Average
from npdraw_dist.training.clock import Clock
from npdraw_dist.training.context import Context
from npdraw_dist.training.device import MicroBatch, autocast, autocast_dtype, flushed_denormals, prepare_ahead
from npdraw_dist.training.early_stopping import EarlyStopping
from npdraw_dist.training.feed import Feed, Rows, noise_of_rows, noise_seed
from npdraw_dist.training.meters import Meters, learning_rate_factor
from npdraw_dist.training.metrics_log import RECENT
from npdraw_dist.training.muon import Muon

# Steps whose gradient is not finite are skipped. A stage ends after SKIPPED_IN_ROW skipped steps in a row, or
# if more than one step in SKIPPED_ONE_OF is skipped.
SKIPPED_IN_ROW, SKIPPED_ONE_OF = 10, 1000
LOGGED = 50  # number of rows of `training.jsonl` in a stage
RATE_FALL = 0.4  # share of the budget, at its end, during which the learning rates fall to 0
MOST_REPORTS = 1000  # largest number of validations of a stage
VALIDATED = 64  # validation images that a rank computes at once
PAINTED = 20  # largest number of validations of a stage at which pictures are made
SMOOTHED = 0.05  # minimum weight of the newest micro-batch in the displayed moving mean of the loss
BOUND = checkpoint.Criterion("valid/elbo", "max")
CHECK_EVERY = 100  # steps between checks for skipped steps on a GPU, where a check waits for the device

# (micro-batch on its device, share of the budget done, noise of its rows) -> the micro-batch to train on
Augment = Callable[[Batch, float, Noise], Batch]
# (module, validation images, generator) -> pictures by name, (C, H, W) in [0, 1]
Paint = Callable[[Objective, Batch, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Data:
    """A rank's training data, and the validation images, which are the same on all ranks.

    augment: changes each micro-batch. paint: makes rank 0's pictures of the model, at most PAINTED times.
    """

    feed: Feed
    valid: Batch
    augment: Augment | None = None
    paint: Paint | None = None


@dataclass(frozen=True)
class Budget:
    """A stage trains on `images` images, with a validation and a checkpoint every `report_interval` images.

    Where validations take too long (`Clock.pauses_too_long`), some of them are left out, never the last.

    criterion, patience: decide whether training ends before the budget (`EarlyStopping`).
    """

    images: int
    eval_every: int
    criterion: checkpoint.Criterion = BOUND
    patience: int = 0


def report_interval(images: int, every: int) -> int:
    """Images between validations: `every`, or more so that there are at most MOST_REPORTS validations."""
    return max(every, -(-images // MOST_REPORTS))


@flushed_denormals()
def train(
    objective: Objective, data: Data, config: TrainConfig, budget: Budget, seed: int, context: Context
) -> dict[str, Any]:
    """Trains `objective` for the budget, from the last checkpoint if there is one.

    Returns a summary of the stage over all restarts: `images`, `images_per_s`, `data_wait_share`,
    `fell_from_best` (`EarlyStopping`), times (`clock.Totals`), and `stopped_at_step` if too many steps had no
    finite gradient. Each validation reports metrics and a checkpoint.
    """
    # setup
    run = Run(objective, config, seed, context, data.augment)
    steps = math.ceil(budget.images / config.batch_size)
    report_every = max(report_interval(budget.images, budget.eval_every) // config.batch_size, 1)
    log_every = max(budget.images // LOGGED // config.batch_size, 1)
    first = done = run.resume(budget)
    clock = run.clock
    painted = first * PAINTED // steps
    batches = prepare_ahead(data.feed.steps(first), context.device)

    for step in range(first, steps):
        if run.stopping.ended:
            break
        # data
        with clock.waiting():
            rows = next(batches)

        # update
        run.update(step, rows, budget.images)
        clock.count_step()

        # Report, and save a checkpoint.
        done = step + 1
        images_seen = min(done * config.batch_size, budget.images)
        due = done % report_every == 0 or done == steps
        rates = clock.totals().rates(done * config.batch_size)
        context.show_progress(images_seen, rates["images_per_s"], run.note)
        save = not due and context.must_save()
        looked_at = context.device.type == "cpu" or done % CHECK_EVERY == 0
        if (due or save or looked_at) and run.is_broken(done):
            return run.summary(done) | {"stopped_at_step": step}
        record = {"images_seen": images_seen, "step": done, **rates}
        if done % log_every == 0 or done == steps:
            with clock.paused():
                run.log(record)
        if due and done < steps and run.validates_too_long():
            due, save = False, True
        if due:
            with clock.paused():
                run.report(record, data.valid, objective.may_end(images_seen / budget.images))
                share = done * PAINTED // steps
                if data.paint is not None and share > painted:
                    run.paint(record, data.valid, data.paint)
                painted = share
        elif save:
            with clock.paused():
                run.save({"images_seen": images_seen, "step": done})
        if (due or save) and done < steps:
            context.check_size()
    return run.summary(done)


class Run:
    """Module, optimizer and meters of one rank."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        seed: int,
        context: Context,
        augment: Augment | None = None,
    ) -> None:
        self.objective, self.config, self.seed, self.context = objective, config, seed, context
        self.augment = augment
        self.precision = autocast_dtype(context.device, config.precision)
        refuse_tf32(context.device)
        self.module = context.wrap(objective)
        groups: list[dict[str, Any]] = [
            {**group} for group in objective.parameter_groups() if group["params"]
        ]
        optimizer = Muon if config.optimizer == "muon" else AdamW
        self.optimizer = optimizer(groups, betas=(0.9, objective.stepping.beta2), fused=True)
        self.peak_rates = [group["lr"] * config.rate_scale for group in self.optimizer.param_groups]
        every = config.average_images
        self.micro_batch = MicroBatch(config.micro_batch, context.device, context.gpu_share)
        self.ahead = None if context.device.type == "cpu" else Ahead()
        self.average = Average(objective, every, config.batch_size) if every else None
        self.meters = Meters()
        self.logged: dict[str, list[float]] = {}  # sum and count of each metric at the last log
        self.loss: Tensor | None = None  # a moving mean on the device; reading it waits for the device
        self.averaged = 0  # number of micro-batches in the moving mean
        self.first = 0  # the step at which this start began
        # (2,), on the device: number of skipped steps in a row until now, and in total since this start.
        self.skipped = torch.zeros(2, device=context.device)

    def resume(self, budget: Budget) -> int:
        """Loads the last checkpoint, if there is one; returns the number of steps already done."""
        found = self.context.restore(
            lambda folder: checkpoint.restore(folder, self.objective, self.optimizer, self.average)
        )
        saved = {} if found is None else found.progress
        self.generation = 0 if found is None else found.generation
        self.clock = Clock(saved, self.context.began)
        self.stopping = EarlyStopping(budget.criterion, saved, budget.patience)
        sums: dict[str, list[float]] = saved.get("meters", {})
        self.logged = dict(sums)
        if self.context.rank > 0:  # only rank 0 restores sums; the others start at zero with the same names
            sums = {name: [0.0, 0.0] for name in sums}
        self.meters.restore(sums, self.context.device)
        self.skipped[0] = saved.get("skipped_in_row", 0.0)
        self.first = int(saved.get("step", 0))
        return self.first

    def is_broken(self, done: int) -> bool:
        """Whether too many steps of this start had no finite gradient. done: steps of the stage until now.

        Only the steps of this start count for the share of skipped steps, since earlier starts may have had
        another learning rate.
        """
        in_row, total = self.skipped.tolist()
        own = done - self.first
        return in_row >= SKIPPED_IN_ROW or (own >= SKIPPED_ONE_OF and total * SKIPPED_ONE_OF > own)

    def update(self, step: int, rows: Rows, images: int) -> None:
        """Takes one optimizer step, unless the gradient is not finite. Nothing here waits for a GPU.

        rows: this rank's rows of the global batch.
        """
        first, batch = rows
        # schedule
        images_seen = step * self.config.batch_size
        stepping = self.objective.stepping
        fall = RATE_FALL * images if stepping.falls else 0.0
        factor = learning_rate_factor(images_seen, images, stepping.warmup * images, fall)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            # A rate of 0 freezes the weights; a gradient of 0 would not, because of momentum.
            group["lr"] = peak * factor if images_seen / images < group.get("until", math.inf) else 0.0

        # gradients
        self.optimizer.zero_grad()
        scale = self.context.world_size / self.config.batch_size
        seed = noise_seed(self.seed, step)
        start, progress = 0, images_seen / images
        while start < len(batch):
            some = batch[start : start + self.micro_batch.rows].to(self.context.device)
            noise = noise_of_rows(seed, first + start, len(some), self.context.device, self.ahead)
            start += len(some)
            with self._apart(start < len(batch)), self.micro_batch.computing(len(some)):
                if self.augment is not None:
                    some = self.augment(some, progress, noise)
                with dropout_noise(self.objective, noise), autocast(self.context.device, self.precision):
                    loss, metrics = self.module(some, progress, noise)
                (loss.sum() * scale).backward()
            found = {name: value.detach() for name, value in {"loss": loss, **metrics}.items()}
            self.meters.add({name: value.nan_to_num(0.0, 0.0, 0.0) for name, value in found.items()})
            mean = found["loss"].nanmean()
            self.averaged += 1
            weight = max(SMOOTHED, 1 / self.averaged)
            moved = mean if self.loss is None else self.loss.lerp(mean, weight)
            self.loss = torch.where(moved.isfinite(), moved, 0.0 if self.loss is None else self.loss)
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), stepping.clip)

        # optimizer
        # Averaged gradients are the same on all ranks, so all ranks skip the same steps.
        broken = (~torch.isfinite(norm)).float()
        self.skipped = torch.stack([(self.skipped[0] + 1) * broken, self.skipped[1] + broken])
        self.meters.add({"skipped_steps": broken})
        # As with GradScaler, found_inf makes the fused optimizer skip the step.
        vars(self.optimizer).update(found_inf=broken, grad_scale=None)
        self.optimizer.step()
        self.objective.after_step(self._gathered)
        if self.average is not None:
            self.average.add(step)

    def validates_too_long(self) -> bool:
        """Whether validations take too long, by the clock of rank 0; the same answer on all ranks."""
        own = float(self.context.rank == 0 and self.clock.pauses_too_long)
        return bool(self.context.sum(torch.tensor([own])).item())

    def _apart(self, more: bool) -> AbstractContextManager[None]:
        """Ranks average gradients at the last micro-batch only. more: whether others follow."""
        module = self.module
        return module.no_sync() if more and isinstance(module, DistributedDataParallel) else nullcontext()

    def _gathered(self, values: Tensor) -> Tensor:
        """values (...) of each rank -> (ranks, ...), on every rank."""
        slots = torch.zeros(self.context.world_size, *values.shape, device=values.device)
        slots[self.context.rank] = values
        return self.context.sum(slots)

    def note(self) -> str:
        """The text shown next to the progress: rank 0's recent loss, and the last validation."""
        loss = "" if self.loss is None else f"loss {float(self.loss):.2f}"
        return ", ".join(filter(None, (loss, self.stopping.note())))

    def log(self, record: dict[str, Any]) -> None:
        """Logs the means of the training metrics since the last log or validation."""
        now = summed(self.meters, self.context)
        row = {"images_seen": record["images_seen"], "step": record["step"]}
        for name, (total, count) in now.items():
            total_before, count_before = self.logged.get(name, [0.0, 0.0])
            if count > count_before:
                row[f"{RECENT}/{name}"] = (total - total_before) / (count - count_before)
        row[f"{RECENT}/images_per_s"] = record["images_per_s"]
        row[f"{RECENT}/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.logged = now
        self.context.log(row)

    def report(self, record: dict[str, Any], valid: Batch, may_end: bool) -> None:
        """Validates, adds metrics to `record`, publishes it with a checkpoint. may_end: see `Objective`."""
        sums = summed(self.meters, self.context)
        record |= {f"train/{name}": total / count for name, (total, count) in sums.items()}
        with nullcontext() if self.average is None else self.average.in_place():
            means = self.validate(valid)
        record |= {f"valid/{name}": value for name, value in means.items()}
        record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.meters.reset()
        self.logged = {}
        if (line := self.stopping.see(record, may_end)) is not None:
            self.context.say(line)
        self.context.say(self.stopping.line(record))
        with self._checkpoint(record) as (folder, name):
            self.context.report(record, folder, name)

    def validate(self, valid: Batch) -> dict[str, float]:
        """Means of the objective's metrics over the validation images, with the same noise each time."""
        objective, context, meters = self.objective, self.context, Meters()
        objective.eval()
        with torch.no_grad():
            # With fewer images than ranks, each rank computes all, since all need the same names.
            ranks, rank = (context.world_size, context.rank) if len(valid) >= context.world_size else (1, 0)
            rows = range(len(valid))[rank * len(valid) // ranks : (rank + 1) * len(valid) // ranks]
            for start in rows[::VALIDATED]:
                batch = valid[start : min(start + VALIDATED, rows.stop)].to(context.device)
                noise = noise_of_rows(noise_seed(self.seed, 2**32 - 1), start, len(batch), context.device)
                meters.add(objective.evaluate(batch, noise))
        objective.train()
        return {name: total / count for name, (total, count) in summed(meters, context).items()}

    def paint(self, record: dict[str, Any], valid: Batch, paint: Paint) -> None:
        """Saves pictures that the current model makes, on rank 0 only."""
        if self.context.rank > 0:
            return
        generator = torch.Generator(self.context.device).manual_seed(noise_seed(self.seed, 2**32 - 2, 0))
        self.objective.eval()
        with torch.no_grad():
            found = paint(self.objective, valid, generator)
        self.objective.train()
        row = {name: record[name] for name in ("images_seen", "step")}
        self.context.add_pictures(row, {name: picture.cpu() for name, picture in found.items()})

    def save(self, record: dict[str, Any]) -> None:
        """Publishes a checkpoint between two validations, with the sums of the training metrics."""
        with self._checkpoint(record) as (folder, name):
            self.context.save(folder, name)

    @contextmanager
    def _checkpoint(self, record: dict[str, Any]) -> Iterator[tuple[Path | None, str]]:
        """Yields a folder with a checkpoint (None on all ranks but 0), and the name of the checkpoint."""
        totals, sums = self.clock.totals(*self._core_seconds()), summed(self.meters, self.context)
        suffix = f"_{self.generation}" if self.generation else ""
        name = f"{checkpoint.PREFIX}{record['step']:09d}{suffix}"
        if self.context.rank > 0:
            yield None, name
            return
        progress = {
            "step": record["step"],
            "generation": self.generation,
            "record": record,
            "clock": asdict(totals),
            "watch": self.stopping.as_json(),
            "meters": sums,
            "skipped_in_row": self.skipped[0].item(),
        }
        folder = Path(tempfile.mkdtemp())
        try:
            checkpoint.save(folder, self.objective, self.optimizer, progress, self.average)
            yield folder, name
        except BaseException:  # otherwise each restart on a full disk would leave a folder
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if not self.context.removes_saved:
            shutil.rmtree(folder)

    def _core_seconds(self) -> tuple[float, float]:
        """CPU seconds of all ranks since their start, in total and in pauses such as validation."""
        spent = time.process_time() - self.context.cpu_started
        own = torch.tensor([spent, self.clock.paused_core_seconds], dtype=torch.float64)
        spent, paused = self.context.sum(own).tolist()
        return spent, paused

    def summary(self, steps: int) -> dict[str, Any]:
        """The summary that `train` returns after `steps` steps of the stage."""
        totals, images = self.clock.totals(*self._core_seconds()), steps * self.config.batch_size
        first = {"first_wait_s": totals.first_wait_s, "first_step_at": totals.first_step_at}
        return {
            "images": images,
            **totals.rates(images),
            "seconds": totals.seconds,
            "earlier_s": totals.earlier_s,
            "core_seconds": totals.core_seconds,
            "validation_core_seconds": totals.validation_core_seconds,
            **{name: value for name, value in first.items() if value is not None},
            **self.stopping.summary(),
        }


def summed(meters: Meters, context: Context) -> dict[str, list[float]]:
    """Sum and count of each metric over all ranks."""
    names = meters.names()
    sums = context.sum(meters.stacked()).tolist() if names else []
    return dict(zip(names, sums, strict=True))
