"""Section `step`, which compares a training step with a matrix product and with other forms of the step.

Each form runs in its own process, so that its memory can be measured. The processes take turns, so that a
busy moment slows all of them.
"""

import pickle
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from npdraw_dist.bench import machine
from npdraw_dist.bench.dense import DenseVAEObjective
from npdraw_dist.bench.workload import Figures, Subject, Workload
from npdraw_dist.nn.objective import PriorObjective, VAEObjective
from npdraw_dist.pipeline.probe import timed_step
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import local_device
from npdraw_dist.training.context import Context
from npdraw_dist.training.device import autocast_dtype, timed
from npdraw_dist.training.loop import Run

DENSE_BATCH, QUICK_DENSE_BATCH = 500, 64
REPEATS, QUICK_REPEATS = 11, 3
DENSE_REPEATS = 3

Trainers = dict[str, "WorkerProcess"]


def run(work: Workload) -> Figures:
    """Measures images/s, memory, and the rate of operations as a share of a matrix product's rate.

    `vae_step_*` (with relaxed draws), `prior_step_*` and `vae_hard_step_images_per_s` (with hard draws, if
    the experiment has them) process the experiment's batch in its micro-batches. `*_vs_dense` process a batch
    of 500 (64 with --quick), which our step divides into micro-batches and the dense reference does not.
    """
    dense_size = QUICK_DENSE_BATCH if work.quick else DENSE_BATCH
    subject = Subject.of(work, max(work.experiment.train.batch_size, dense_size))
    kinds, threads = ["prior", "vae", *(["dense"] if work.dense else [])], torch.get_num_threads()
    with ExitStack() as stack:
        trainers = {
            kind: stack.enter_context(WorkerProcess(Trainer, subject, kind, threads)) for kind in kinds
        }
        for trainer in trainers.values():
            trainer.made.result()  # waits, so that nothing is measured while a process still loads
        figures = _beside_product(trainers, work)
        if work.dense:
            steps = {kind: partial(trainers[kind].call, "update", dense_size) for kind in ("vae", "dense")}
            seconds = _in_turns(steps, 1 if work.quick else DENSE_REPEATS)
            dense_mb = trainers["dense"].call("peak_mb")
            flops = trainers["dense"].call("flops", dense_size)
            figures |= {
                "dense_batch": dense_size,
                "vae_step_dense_gflops_per_image": flops / dense_size / 1e9,
                "vae_step_s": seconds["vae"],
                "vae_step_dense_s": seconds["dense"],
                "vae_step_speedup_vs_dense": seconds["dense"] / seconds["vae"],
                "vae_step_dense_peak_mb": dense_mb,
                "vae_step_memory_vs_dense": trainers["vae"].call("peak_mb") / dense_mb,
            }
        figures |= {f"{kind}_step_peak_mb": trainers[kind].call("peak_mb") for kind in ("prior", "vae")}
    return figures


def _beside_product(trainers: Trainers, work: Workload) -> Figures:
    """Compares the steps with a matrix product in the number type of the steps' own products."""
    experiment, kinds = work.experiment, ("vae", "prior")
    size = experiment.train.batch_size
    dtype = autocast_dtype(local_device(), experiment.train.precision) or torch.float32
    flops = {kind: trainers[kind].call("flops", size) for kind in kinds}
    product, operations = machine.matrix_product(dtype)
    steps: dict[str, Callable[[], float]] = {"product": lambda: timed(product)[1]}
    steps |= {kind: partial(trainers[kind].call, "update", size) for kind in kinds}
    if experiment.vae.relaxed_share < 1:
        steps["vae_hard"] = partial(trainers["vae"].call, "update", size, True)
    seconds = _in_turns(steps, QUICK_REPEATS if work.quick else REPEATS)
    peak = operations / seconds.pop("product")
    figures: Figures = {
        "step_batch": size,
        "step_peak_gflops": peak / 1e9,
        "step_peak_bits": torch.finfo(dtype).bits,  # 16 stands for bfloat16
    }
    figures |= {f"{step}_step_images_per_s": size / median for step, median in seconds.items()}
    for kind in kinds:
        figures[f"{kind}_step_gflops_per_image"] = flops[kind] / size / 1e9
        figures[f"{kind}_step_flops_utilization"] = flops[kind] / seconds[kind] / peak
    return figures


def _in_turns(steps: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Runs the steps in turns; returns the median of the seconds of each step."""
    turns = [[step() for step in steps.values()] for _ in range(repeats)]
    return dict(zip(steps, map(statistics.median, zip(*turns, strict=True)), strict=True))


# The counter of torch 2.13 does not know the fused attention of CPUs. As for the other kernels, all pairs of
# steps count, although a causal kernel skips half of the pairs.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


def flop_counter() -> FlopCounterMode:
    """A context manager that counts the operations of products, convolutions and attention in its block."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= ATTENTION
    return counter


class Trainer:
    """Takes training steps as the training loop does.

    kind: `prior`, `vae`, or `dense` (the VAE in the dense formulation).
    """

    def __init__(self, subject: Subject, kind: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.batch, self.dense = subject.batch, kind == "dense"
        settings = subject.experiment.train
        context = Context(local_device())
        if self.dense:  # the whole batch at once
            settings = settings.model_copy(update={"micro_batch": len(self.batch)})
        self.run = Run(_objective(subject, kind), settings, subject.experiment.seed, context)
        self.update(2)  # loads libraries and makes the optimizer's moments
        self.before_mb = machine.memory_mb()

    def update(self, size: int, hard: bool = False) -> float:
        """Takes a step on a batch of `size`, in micro-batches, or as a whole if dense; returns the seconds.

        hard: whether a step of the VAE uses hard draws.
        """
        seconds = timed_step(self.run, self.batch[:size], hard)
        assert not self.run.skipped.any(), "a first step is finite"
        return seconds

    def flops(self, size: int) -> int:
        """The number of operations in a step on a batch of `size`, forward and backward."""
        with flop_counter() as counter:
            self.update(size)
        return int(counter.get_total_flops())

    def peak_mb(self) -> float:
        """The largest memory of the steps so far, in MiB, without weights, moments, data and libraries."""
        return machine.peak_mb() - self.before_mb


def _objective(subject: Subject, kind: str) -> PriorObjective | VAEObjective:
    model, settings = subject.model(), subject.experiment
    if kind == "prior":
        return PriorObjective(model.prior, settings.prior.learning_rate)
    if kind == "dense":
        return DenseVAEObjective(model, settings.vae, convolved=True)
    return VAEObjective(model, settings.vae)


class WorkerProcess(ProcessPoolExecutor):
    """Makes an object `make(*arguments)` in a new process, which ends with the `with` block."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(1, get_context("spawn"))  # a fork would start with all of this process's memory
        self.name = f"{make.__name__}{tuple(a for a in arguments if isinstance(a, str | int))}"
        # Arguments are sent as pickled bytes, since torch would make the pool send tensors by shared memory.
        self.made = self.submit(_make, pickle.dumps((make, arguments)))

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a method of the object. Raises what it raises, and UserError if the process was killed."""
        try:
            self.made.result()
            return self.submit(_call, name, arguments).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {self.name} was killed, perhaps for lack of memory (--against none measures "
                "without the dense reference, --train.micro_batch 16 with less memory)"
            ) from None


_made: list[Any] = []  # the object of a worker process


def _make(pickled: bytes) -> None:
    make, arguments = pickle.loads(pickled)
    _made.append(make(*arguments))


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_made[0], name)(*arguments)
