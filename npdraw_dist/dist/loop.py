"""The one training loop, of prior and VAE alike. Everything is counted in images.

It runs on each rank of a Ray Train run, or alone (`Context`).
"""

import math
import tempfile
import time
from collections.abc import Callable
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
from npdraw_dist.dist import checkpoint
from npdraw_dist.dist.context import Context
from npdraw_dist.dist.feed import Feed, noise_seed


class Objective(Protocol):
    """What a stage minimises: an `nn.Module` with these methods."""

    def parameter_groups(self) -> list[dict[str, Any]]: ...

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

    Returns a summary: images, images_per_s, seconds, and stopped_at_step where the loss turned
    non-finite. Each validation reports metrics and a checkpoint.
    """
    # setup
    run = _Run(objective, config, seed, context)
    steps = math.ceil(budget.images / config.batch_size)
    every = max(budget.every // config.batch_size, 1)
    first = run.resume()
    started = window = time.perf_counter()
    training = 0.0

    for step, chunks in zip(range(first, steps), feed.steps(first), strict=False):
        # update
        if not run.update(step, chunks, budget.images):
            return _summary(step - first, config, training, started) | {"stopped_at_step": step}

        # report and checkpoint
        done = step + 1
        seen = min(done * config.batch_size, budget.images)
        now = time.perf_counter()
        progress(seen, (done - first) * config.batch_size / (training + now - window))
        if done % every == 0 or done == steps:
            training += now - window
            record: dict[str, Any] = {"images_seen": seen, "step": done}
            record["images_per_s"] = (done - first) * config.batch_size / training
            run.report(record, valid)
            window = time.perf_counter()
    return _summary(steps - first, config, training, started)


class _Run:
    """Module, optimizer and meters of one rank."""

    def __init__(self, objective: Any, config: TrainConfig, seed: int, context: Context) -> None:
        self.objective, self.config, self.seed, self.context = objective, config, seed, context
        self.module = context.wrap(objective)
        groups = [group for group in objective.parameter_groups() if group["params"]]
        self.optimizer = AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = torch.Generator(context.device)
        self.meters = Meters()
        self.generation = 0

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

    def update(self, step: int, chunks: list[tuple[int, Batch]], images: int) -> bool:
        """One step of the optimizer; False, and no step, where the gradient is not finite."""
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
                loss, metrics = self.module(batch.to(self.context.device), seen / images, self.generator)
                (loss.sum() * scale).backward()
            self.meters.add({"loss": loss, **metrics})
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.gradient_clip)
        # Averaged gradients are the same on all ranks, so all stop at the same step.
        if not torch.isfinite(norm):
            return False
        self.optimizer.step()
        return True

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


def _summary(steps: int, config: TrainConfig, training: float, started: float) -> dict[str, Any]:
    images = steps * config.batch_size
    return {
        "images": images,
        "images_per_s": images / training if training else 0.0,
        "seconds": time.perf_counter() - started,
    }
