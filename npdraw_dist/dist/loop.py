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
    module = context.wrap(objective)
    groups = objective.parameter_groups()
    optimizer = AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99), fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator(context.device)
    meters = Meters()
    steps = math.ceil(budget.images / config.batch_size)
    every = max(budget.every // config.batch_size, 1)
    first = 0
    with context.latest() as folder:
        if folder is not None:
            first = checkpoint.restore(folder, objective, optimizer)["step"]
    started = window = time.perf_counter()
    training_seconds = 0.0

    for step, chunks in zip(range(first, steps), feed.steps(first), strict=False):
        # schedule
        seen = step * config.batch_size
        share = seen / budget.images
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * warmup_cosine(seen, budget.images, config.warmup * budget.images)

        # gradients
        optimizer.zero_grad(set_to_none=True)
        scale = context.world_size / config.batch_size
        for index, (chunk, batch) in enumerate(chunks):
            generator.manual_seed(noise_seed(seed, step, chunk))
            with _synchronised(module, index == len(chunks) - 1):
                loss, metrics = module(batch.to(context.device), share, generator)
                (loss.sum() * scale).backward()
            meters.add({"loss": loss, **metrics})
        norm = nn.utils.clip_grad_norm_(objective.parameters(), config.gradient_clip)
        # Averaged gradients are the same on all ranks, so all stop at the same step.
        if not torch.isfinite(norm):
            return _summary(step, first, config, training_seconds, started) | {"stopped_at_step": step}
        optimizer.step()

        # report and checkpoint
        done = step + 1
        seen = min(done * config.batch_size, budget.images)
        now = time.perf_counter()
        progress(seen, (done - first) * config.batch_size / (training_seconds + now - window))
        if done % every == 0 or done == steps:
            training_seconds += now - window
            record: dict[str, Any] = {"images_seen": seen, "step": done}
            record |= {f"train/{k}": v for k, v in _reduced(meters, context).items()}
            record |= {f"valid/{k}": v for k, v in validate(objective, valid, config, seed, context).items()}
            record["images_per_s"] = (done - first) * config.batch_size / training_seconds
            record["learning_rate"] = optimizer.param_groups[0]["lr"]
            _report(record, objective, optimizer, context)
            meters.reset()
            window = time.perf_counter()
    return _summary(steps, first, config, training_seconds, started)


def validate(
    objective: Any, valid: Batch, config: TrainConfig, seed: int, context: Context
) -> dict[str, float]:
    """Means of the objective's metrics over the validation images, the same noise each time."""
    meters = Meters()
    generator = torch.Generator(context.device)
    objective.eval()
    with torch.no_grad():
        starts = range(0, len(valid), config.micro_batch)[: config.eval_batches * context.world_size]
        for index, start in enumerate(starts):
            if index % context.world_size == context.rank or len(starts) < context.world_size:
                generator.manual_seed(noise_seed(seed, 2**32 - 1, index))
                batch = valid[start : start + config.micro_batch].to(context.device)
                meters.add(objective.evaluate(batch, generator))
    objective.train()
    return _reduced(meters, context)


def _reduced(meters: Meters, context: Context) -> dict[str, float]:
    return meters.means(context.sum(meters.stacked())) if meters.names() else {}


def _report(record: dict[str, Any], objective: Any, optimizer: AdamW, context: Context) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if context.rank == 0 else None
        if folder is not None:
            checkpoint.save(folder, objective, optimizer, {"step": record["step"], "record": record})
        context.report(record, folder, f"checkpoint_{record['step']:09d}")


def _synchronised(module: nn.Module, last: bool) -> Any:
    """Ranks average gradients at the last micro-batch of a step only."""
    if not last and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return torch.enable_grad()


def _summary(step: int, first: int, config: TrainConfig, training: float, started: float) -> dict[str, Any]:
    images = (step - first) * config.batch_size
    return {
        "images": images,
        "images_per_s": images / training if training else 0.0,
        "seconds": time.perf_counter() - started,
    }
