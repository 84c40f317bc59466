"""Training steps of one kind of objective, timed, with their operations and memory."""

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from npdraw_dist.bench import machine
from npdraw_dist.bench.bench_model import BenchModel
from npdraw_dist.bench.dense import DenseVAEObjective
from npdraw_dist.bench.timing import timed
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.training.context import LocalContext
from npdraw_dist.training.device import flushed_denormals
from npdraw_dist.training.loop import Run

MANY = 1 << 30  # images of a budget in which one step makes no progress


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter of torch 2.13 does not know the fused attention of CPUs. All pairs of steps count, as for the
# other kernels, although a causal kernel skips half of them.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Counts the operations of products, convolutions and attention in its block."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


class Trainer:
    """Takes training steps as the training loop does.

    kind: `prior`, `vae`, `compiled` (the VAE with train.compile), `channels_last` (the VAE whose convolutions
    have weights in that layout), or the VAE in the dense formulation: `dense` and `dense_allocator` (the
    whole of it), `dense_pasting` (with our stem).
    """

    def __init__(self, subject: BenchModel, kind: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.batch, self.dense = subject.batch, kind.startswith("dense")
        settings = subject.experiment.train.model_copy(update={"compile": kind == "compiled"})
        self.micro_batch = settings.micro_batch
        context = LocalContext(device=str(machine.device()))
        self.run = Run(make_objective(subject, kind), settings, subject.experiment.seed, context)
        if kind == "channels_last":
            self.run.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        started = time.perf_counter()
        if settings.compile:
            for _ in range(3):  # a GPU records its graphs at the second and third step
                self.update(self.micro_batch)
        else:
            self.update(2)  # loads libraries and makes the optimizer's moments
        self.start_s = time.perf_counter() - started
        self.before_mb = machine.memory_mb()

    def update(self, size: int, hard: bool = False) -> float:
        """Seconds of a step on a batch of `size`: in micro-batches, or as a whole if dense.

        hard: a step of the VAE after those with relaxed draws.
        """
        step = size if self.dense else self.micro_batch
        chunks = [self.batch[start : min(start + step, size)] for start in range(0, size, step)]
        # The second step of two is past the relaxed draws.
        first, budget = (1, 1 + self.run.config.batch_size) if hard else (0, MANY)
        with flushed_denormals():
            _, seconds = timed(lambda: self.run.update(first, list(enumerate(chunks)), budget))
        assert self.run.first_broken_step() is None, "a first step is finite"
        return seconds

    def flops(self, size: int) -> int:
        """Operations of a step on a batch of `size`, forward and backward."""
        with flop_counter() as counter:
            self.update(size)
        return int(counter.get_total_flops())

    def seconds_to_start(self) -> float:
        """Until the first steps were done, compilation included."""
        return self.start_s

    def parameters(self) -> int:
        """The number of parameters that are trained."""
        return sum(p.numel() for p in self.run.objective.parameters() if p.requires_grad)

    def peak_mb(self) -> float:
        """The most memory that steps took so far, without weights, moments, data and libraries."""
        return machine.peak_mb() - self.before_mb


def make_objective(subject: BenchModel, kind: str) -> PriorObjective | VAEObjective:
    prior, vae = subject.experiment.prior, subject.experiment.vae
    if kind == "prior":
        return PriorObjective(subject.model().prior, prior.learning_rate, prior.weight_decay)
    model = subject.model(stem="conv" if kind in ("dense", "dense_allocator") else None)
    make = DenseVAEObjective if kind.startswith("dense") else VAEObjective
    return make(model, vae, prior.weight_decay)
