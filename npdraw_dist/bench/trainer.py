"""Training steps of an objective in a process of its own: their time, operations and memory."""

import os
import pickle
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from npdraw_dist.bench import machine
from npdraw_dist.bench.dense import DenseVAEObjective
from npdraw_dist.bench.parsing import make_parser
from npdraw_dist.bench.workload import Workload, timed
from npdraw_dist.config.schema import Experiment
from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.images import canvas_bytes
from npdraw_dist.core.parts import Batch, PartBank
from npdraw_dist.nn.npdraw import NPDraw
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.training.context import Context
from npdraw_dist.training.device import flushed_denormals
from npdraw_dist.training.loop import Run

MANY = 1 << 30  # images of a budget in which one step makes no progress


@dataclass(frozen=True)
class Subject:
    """What training and drawing are measured on: an experiment, a bank of its images, and parsed images."""

    experiment: Experiment
    bank: PartBank
    batch: Batch

    @classmethod
    def of(cls, work: Workload, size: int) -> "Subject":
        """`size` images; if the workload has fewer, the first ones are repeated."""
        parser = make_parser(work)
        images = work.images[torch.arange(size).numpy() % len(work.images)]
        z = parser(torch.from_numpy(canvas_bytes(images, work.experiment.grid.downscale))).z
        return cls(work.experiment, parser.bank, Batch.of(torch.from_numpy(images), z))

    def model(self) -> NPDraw:
        """Untrained, on the device that there is."""
        torch.manual_seed(self.experiment.seed)
        model = NPDraw(ModelSpec.of(self.experiment))
        model.set_bank(self.bank)
        return model.to(machine.device())

    def objective(self, kind: str) -> PriorObjective | VAEObjective:
        """kind: as for `Trainer`."""
        model, vae = self.model(), self.experiment.vae
        if kind == "prior":
            return PriorObjective(model.prior, self.experiment.prior.learning_rate)
        if not kind.startswith("dense"):
            return VAEObjective(model, vae)
        return DenseVAEObjective(model, vae, convolved=kind in ("dense", "dense_allocator"))


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

    def __init__(self, subject: Subject, kind: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.batch, self.dense = subject.batch, kind.startswith("dense")
        settings = subject.experiment.train.model_copy(update={"compile": kind == "compiled"})
        self.micro_batch = settings.micro_batch
        context = Context(device=str(machine.device()))
        self.run = Run(subject.objective(kind), settings, subject.experiment.seed, context)
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


class WorkerProcess:
    """`make(*arguments)` in a new process that ends with the `with` block; `call` calls its methods.

    without: environment variables of this process that the new one does not get.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, without: Collection[str] = ()) -> None:
        self.name = f"{make.__name__}{tuple(a for a in arguments if isinstance(a, str | int))}"
        # Not a fork: it would begin with all of this process's memory.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        removed = {name: os.environ.pop(name) for name in without if name in os.environ}
        # Pickled here: torch would make the pool send tensors as shared memory.
        self._made = self._pool.submit(_make, pickle.dumps((make, arguments)))
        os.environ.update(removed)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def call(self, method: str, *arguments: Any) -> Any:
        """What its method returns or raises. Raises UserError if the process was killed."""
        return self._result(lambda: self._pool.submit(_call, method, arguments))

    def wait(self) -> None:
        """Returns once the object is made: nothing is measured while one still loads or compiles."""
        self._result(lambda: self._made)

    def _result(self, start: Callable[[], Future[Any]]) -> Any:
        try:
            return start().result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {self.name} was killed, perhaps for lack of memory (--against none measures "
                "without the dense reference, --train.micro_batch 16 with less memory)"
            ) from None


_held: list[Any] = []  # the object of a worker process


def _make(pickled: bytes) -> None:
    make, arguments = pickle.loads(pickled)
    _held.append(make(*arguments))


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_held[0], method)(*arguments)
