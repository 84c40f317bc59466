"""What training and drawing are measured on: the experiment's model with a bank, and parsed images.

Shapes: N images, B batch.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from npdraw_dist.bench import machine
from npdraw_dist.bench.dense import DenseVAEObjective
from npdraw_dist.bench.parsing import make_parser
from npdraw_dist.bench.workload import Workload
from npdraw_dist.config.load import build, merge
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.training.context import LocalContext
from npdraw_dist.training.loop import Run

MANY = 1 << 30  # images of a budget that one step does not move in


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter of torch 2.13 does not know the fused attention of CPUs. As for the others, all pairs of steps
# count, though a causal kernel leaves half of them out.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Counts the operations of products, convolutions and attention in its block."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


@dataclass(frozen=True)
class Subject:
    """An experiment, the bank of its images, and some of these with their parses."""

    experiment: Experiment
    bank: PartBank
    batch: Batch

    @classmethod
    def of(cls, work: Workload, size: int) -> "Subject":
        """`size` images, the first ones again where there are fewer."""
        parser = make_parser(work)
        images = work.images[torch.arange(size).numpy() % len(work.images)]
        z = parser(torch.from_numpy(canvas_bytes(images, work.experiment.grid.downscale))).z
        return cls(work.experiment, parser.bank, Batch(torch.from_numpy(images), z))

    @cached_property
    def model(self) -> NPDraw:
        """Untrained, on the device that there is."""
        return self._model(self.experiment)

    @cached_property
    def authors(self) -> NPDraw:
        """The same with the authors' stem: convolutions of every canvas."""
        return self._model(build(merge(self.experiment.model_dump(mode="json"), {"prior": {"stem": "conv"}})))

    def _model(self, experiment: Experiment) -> NPDraw:
        torch.manual_seed(experiment.seed)
        model = NPDraw(ModelSpec.of(experiment))
        model.set_bank(self.bank)
        return model.to(machine.device())

    def objective(self, kind: str) -> PriorObjective | VAEObjective:
        """prior, vae, `compiled` (the VAE too), or the VAE by the dense reference.

        `dense` and `dense_allocator` are all of the reference, `dense_pasting` has our stem.
        """
        prior, vae = self.experiment.prior, self.experiment.vae
        if kind == "prior":
            return PriorObjective(self.model.prior, prior.learning_rate, prior.weight_decay)
        make = DenseVAEObjective if kind.startswith("dense") else VAEObjective
        authors = kind in ("dense", "dense_allocator")
        return make(self.authors if authors else self.model, vae, prior.weight_decay)


class Trainer:
    """Takes training steps of one kind of objective, as the training loop takes them."""

    def __init__(self, subject: Subject, kind: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.subject, self.kind, self.seed = subject, kind, subject.experiment.seed
        settings = subject.experiment.train.model_copy(update={"compile": kind == "compiled"})
        self.micro_batch = settings.micro_batch
        context = LocalContext(device=str(machine.device()))
        self.run = Run(subject.objective(kind), settings, self.seed, context)
        started = time.perf_counter()
        self.update(2)  # libraries are loaded, moments are there
        if settings.compile:
            self.update(self.micro_batch)  # the second shape compiles once more
        self.start_s = time.perf_counter() - started
        self.before = machine.memory_mb()

    def update(self, size: int) -> float:
        """Seconds of a step on a batch of `size`: in micro-batches, the dense one as a whole."""
        batch = self.subject.batch[:size]
        chunks = [batch] if self.kind.startswith("dense") else split(batch, self.micro_batch)
        started = time.perf_counter()
        self.run.update(0, list(enumerate(chunks)), MANY)
        machine.synchronise()
        seconds = time.perf_counter() - started
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
        """Those that are trained."""
        return sum(p.numel() for p in self.run.objective.parameters() if p.requires_grad)

    def peak_mb(self) -> float:
        """The most memory that steps took so far, beside weights, moments, data and libraries."""
        return machine.peak_mb() - self.before


def split(batch: Batch, size: int) -> list[Batch]:
    return [batch[start : start + size] for start in range(0, len(batch), size)]
