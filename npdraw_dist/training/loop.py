"""The one training loop, of prior and VAE alike. Everything is counted in images.

It runs on each rank of a Ray Train run, or alone (`Context`).
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.core.meters import Meters
from npdraw_dist.core.parts import Batch
from npdraw_dist.core.schedules import warmup_cosine
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import Context
from npdraw_dist.training.device import ahead, allow_tf32, autocast, autocast_dtype
from npdraw_dist.training.feed import Feed, noise_seed

NEVER = 2**62  # steps
LOOK_EVERY = 100  # steps


class Objective(Protocol):
    """What a stage minimises: an `nn.Module` with these methods."""

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def networks(self) -> list[nn.Module]:
        """Those worth compiling: most of the work, and shapes that do not change."""

    def forward(
        self, batch: Batch, share: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def evaluate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Budget:
    """How long a stage trains. images: its budget. Validation runs every `every` images."""

    images: int
    every: int


# Called with the images seen and images/s, some times a second at most.
Progress = Callable[[int, float], None]


def train(
    objective: Any,
    feed: Feed,
    valid: Batch,
    config: TrainConfig,
    budget: Budget,
    seed: int,
    context: Context,
    progress: Progress = lambda images_seen, rate: None,
) -> dict[str, Any]:
    """Trains `objective` for the budget, from the last checkpoint on where there is one.

    Returns a summary: `images`, `images_per_s` and `seconds`; `first_wait_s`, until `feed` gave the first
    batch; `data_wait_share`, the share of the time after that spent waiting for `feed`; `first_step_at`,
    the Unix time at which the first step was done; and `stopped_at_step` where the loss turned
    non-finite. Each validation reports metrics and a checkpoint.
    """
    # setup
    run = Run(objective, config, seed, context)
    steps = math.ceil(budget.images / config.batch_size)
    every = max(budget.every // config.batch_size, 1)
    first = run.resume()
    clock = _Clock(config.batch_size)
    batches = ahead(feed.steps(first), context.device)

    for step in range(first, steps):
        # data
        with clock.waiting():
            chunks = next(batches)

        # update
        run.update(step, chunks, budget.images)
        clock.stepped()

        # report and checkpoint
        done = step + 1
        seen = min(done * config.batch_size, budget.images)
        due = done % every == 0 or done == steps
        if (due or run.looks(done)) and (broken := run.broken_at()) is not None:
            return clock.summary(broken - first) | {"stopped_at_step": broken}
        progress(seen, clock.rates(done - first)["images_per_s"])
        if due:
            record = {"images_seen": seen, "step": done, **clock.rates(done - first)}
            with clock.aside():
                run.report(record, valid)
    return clock.summary(steps - first)


class _Clock:
    """Seconds of a run: training, of these waiting for data, and aside in validation and checkpoints.

    On a GPU the host runs ahead of the device: it waits for data even where the device does not.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.started = time.perf_counter()
        self.waited = self.elsewhere = 0.0
        self.first_step_at: float | None = None
        self.first_wait_s: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        spent = time.perf_counter() - before
        if self.first_wait_s is None:
            self.first_wait_s = spent
        else:
            self.waited += spent

    @contextmanager
    def aside(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.elsewhere += time.perf_counter() - before

    def stepped(self) -> None:
        """Called after each step."""
        if self.first_step_at is None:
            self.first_step_at = time.time()

    def rates(self, steps: int) -> dict[str, Any]:
        """images_per_s and data_wait_share after `steps` steps."""
        training = time.perf_counter() - self.started - self.elsewhere
        return {
            "images_per_s": steps * self.batch_size / training,
            "data_wait_share": self.waited / (training - (self.first_wait_s or 0.0)),
        }

    def summary(self, steps: int) -> dict[str, Any]:
        first = {"first_wait_s": self.first_wait_s, "first_step_at": self.first_step_at}
        return {
            "images": steps * self.batch_size,
            **self.rates(steps),
            "seconds": time.perf_counter() - self.started,
            **{name: value for name, value in first.items() if value is not None},
        }


class Run:
    """Module, optimizer and meters of one rank."""

    def __init__(self, objective: Any, config: TrainConfig, seed: int, context: Context) -> None:
        self.objective, self.config, self.seed, self.context = objective, config, seed, context
        if config.compile:
            for network in objective.networks():
                network.compile()  # in place: names of weights and checkpoints stay
        self.precision = autocast_dtype(context.device, config.precision)
        allow_tf32(context.device, config.precision)
        self.module = context.wrap(objective)
        groups = [group for group in objective.parameter_groups() if group["params"]]
        self.optimizer = AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = torch.Generator(context.device)
        self.meters = Meters()
        self.generation = 0
        # The first step whose gradient was not finite; on the device, for to look at it waits for the step.
        self.broken = torch.full((), NEVER, device=context.device)

    def resume(self) -> int:
        """The step to go on from: of the last checkpoint, or 0."""
        found = self.context.restore(
            lambda folder: checkpoint.restore(folder, self.objective, self.optimizer)
        )
        if found is None:
            return 0
        progress, past_damage = found
        # A checkpoint in the place of a damaged one takes another name: Ray Train deletes by name.
        self.generation = progress["generation"] + past_damage
        return int(progress["step"])

    def looks(self, done: int) -> bool:
        """Whether to look after `done` steps if the loss broke: seldom where that waits for the device."""
        return self.context.device.type == "cpu" or done % LOOK_EVERY == 0

    def broken_at(self) -> int | None:
        """The first step whose gradient was not finite; None if all were."""
        first = int(self.broken)
        return None if first == NEVER else first

    def update(self, step: int, chunks: list[tuple[int, Batch]], images: int) -> None:
        """One step of the optimizer. Nothing in it waits for a GPU; `broken_at` tells if it failed."""
        # schedule
        seen = step * self.config.batch_size
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * warmup_cosine(seen, images, self.config.warmup * images)

        # gradients
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.context.world_size / self.config.batch_size
        for index, (chunk, batch) in enumerate(chunks):
            noise = noise_seed(self.seed, step, chunk)
            self.generator.manual_seed(noise)
            torch.manual_seed(noise)  # dropout draws from the global stream
            with _synchronised(self.module, index == len(chunks) - 1):
                with autocast(self.context.device, self.precision):
                    loss, metrics = self.module(batch.to(self.context.device), seen / images, self.generator)
                (loss.sum() * scale).backward()
            self.meters.add({"loss": loss, **metrics})
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.gradient_clip)
        # Averaged gradients are the same on all ranks, so all stop at the same step.
        self.broken = torch.where(torch.isfinite(norm), self.broken, self.broken.clamp(max=step))
        if self.looks(step + 1) and self.broken_at() is not None:
            return  # the weights stay as they were, where that is known in time
        self.optimizer.step()

    def report(self, record: dict[str, Any], valid: Batch) -> None:
        """Adds the metrics of training and validation to `record`; publishes it with a checkpoint."""
        means = _reduced(self.meters, self.context)
        record |= {f"train/{name}": value for name, value in means.items()}
        means = validate(self.objective, valid, self.config, self.seed, self.context)
        record |= {f"valid/{name}": value for name, value in means.items()}
        record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.meters.reset()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) if self.context.rank == 0 else None
            if folder is not None:
                progress = {"step": record["step"], "generation": self.generation, "record": record}
                checkpoint.save(folder, self.objective, self.optimizer, progress)
            suffix = f"_{self.generation}" if self.generation else ""
            self.context.report(record, folder, f"{checkpoint.PREFIX}{record['step']:09d}{suffix}")


def validate(
    objective: Any, valid: Batch, config: TrainConfig, seed: int, context: Context
) -> dict[str, float]:
    """Means of the objective's metrics over the validation images, the same noise each time."""
    meters = Meters()
    generator = torch.Generator(context.device)
    objective.eval()
    with torch.no_grad():
        starts = range(0, len(valid), config.micro_batch)[: config.eval_batches]
        for index, start in enumerate(starts):
            if index % context.world_size == context.rank or len(starts) < context.world_size:
                generator.manual_seed(noise_seed(seed, 2**32 - 1, index))
                batch = valid[start : start + config.micro_batch].to(context.device)
                meters.add(objective.evaluate(batch, generator))
    objective.train()
    return _reduced(meters, context)


def _reduced(meters: Meters, context: Context) -> dict[str, float]:
    return meters.means(context.sum(meters.stacked())) if meters.names() else {}


def _synchronised(module: nn.Module, last: bool) -> Any:
    """Ranks average gradients at the last micro-batch of a step only."""
    if not last and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return torch.enable_grad()
