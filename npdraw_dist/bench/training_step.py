"""Sections `step` and `compile`: a training step beside a matrix product and other forms of the step.

Each form is in a process of its own, so that its memory is its own. They work in turns, so that a busy moment
meets all of them.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from npdraw_dist.bench import machine
from npdraw_dist.bench.trainer import Subject, Trainer, WorkerProcess
from npdraw_dist.bench.workload import Figures, Workload, timed
from npdraw_dist.training.device import autocast_dtype
from npdraw_dist.training.environment import ALLOCATOR
from npdraw_dist.training.workers import has_compiler

DENSE_BATCH, QUICK_DENSE_BATCH = 500, 64
REPEATS, QUICK_REPEATS = 11, 3
DENSE_REPEATS = 3
DENSE = ("dense", "dense_allocator", "dense_pasting")

Trainers = dict[str, WorkerProcess]


def run(work: Workload) -> Figures:
    """images/s, memory, and the part of the peak that the counted operations reach.

    `vae_step_*` (with relaxed draws), `prior_step_*` and `vae_hard_step_images_per_s` (with hard draws, if
    the experiment has them) are of the experiment's batch in its micro-batches. `*_vs_dense` are of a batch
    of 500 (64 with --quick): ours in micro-batches, the dense reference as a whole and with the allocator's
    defaults, as it runs without this project. `*_same_allocator`: the reference with our allocator settings.
    `*_dense_pasting`: with our stem too, so that only the pasting differs.
    `channels_last_speedup` (on a GPU): the time of a VAE step over that with weights of convolutions in that
    layout. For GroupNorm torch has long converted to the other one and back (pytorch#111824).
    """
    dense_size = QUICK_DENSE_BATCH if work.quick else DENSE_BATCH
    size = work.experiment.train.batch_size
    kinds = ["prior", "vae", *(DENSE if work.dense else [])]
    if machine.device().type == "cuda":
        kinds.append("channels_last")
    with _started(Subject.of(work, max(size, dense_size)), kinds) as trainers:
        figures = _utilization(trainers, work, QUICK_REPEATS if work.quick else REPEATS)
        if "channels_last" in trainers:
            seconds = _median_steps(trainers, ("vae", "channels_last"), size, REPEATS)
            figures["channels_last_speedup"] = seconds["vae"] / seconds["channels_last"]
        if work.dense:
            figures |= _against_dense(trainers, dense_size, 1 if work.quick else DENSE_REPEATS)
        for kind in ("prior", "vae"):
            figures[f"{kind}_step_peak_mb"] = trainers[kind].call("peak_mb")
    return figures


def run_compiled(work: Workload) -> Figures:
    """`compile_speedup`: time of the plain VAE step over that with `train.compile`. `compile_s`: to start.

    A GPU then replays CUDA graphs. Compiling takes a minute or more. Nothing without a C++ compiler.
    """
    if not has_compiler():
        return {}
    size = work.experiment.train.batch_size
    with _started(Subject.of(work, size), ("vae", "compiled")) as trainers:
        seconds = _median_steps(trainers, ("vae", "compiled"), size, REPEATS)
        return {
            "compile_speedup": seconds["vae"] / seconds["compiled"],
            "compile_s": trainers["compiled"].call("seconds_to_start"),
        }


@contextmanager
def _started(subject: Subject, kinds: Sequence[str]) -> Iterator[Trainers]:
    """A process for each kind, all ready. `dense` is without our settings of the allocator."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        trainers = {}
        for kind in kinds:
            without = ALLOCATOR if kind == "dense" else ()
            process = WorkerProcess(Trainer, subject, kind, threads, without=without)
            trainers[kind] = stack.enter_context(process)
        for trainer in trainers.values():
            trainer.wait()
        yield trainers


def _median_steps(trainers: Trainers, kinds: Sequence[str], size: int, repeats: int) -> dict[str, float]:
    """The median seconds of a step of each kind, in turns."""
    turns = [[trainers[kind].call("update", size) for kind in kinds] for _ in range(repeats)]
    return dict(zip(kinds, map(statistics.median, zip(*turns, strict=True)), strict=True))


def _utilization(trainers: Trainers, work: Workload, repeats: int) -> Figures:
    """Beside a matrix product in the numbers that the step's own products have."""
    experiment, kinds = work.experiment, ("vae", "prior")
    size, has_hard = experiment.train.batch_size, experiment.vae.relaxed_share < 1
    dtype = autocast_dtype(machine.device(), experiment.train.precision) or torch.float32
    flops = {kind: trainers[kind].call("flops", size) for kind in kinds}
    product = machine.MatrixProduct(dtype)
    seconds: dict[str, list[float]] = {kind: [] for kind in ("product", *kinds)}
    hard: list[float] = []
    for _ in range(repeats):
        for kind in kinds:
            seconds["product"].append(timed(product)[1])
            seconds[kind].append(trainers[kind].call("update", size))
        if has_hard:
            hard.append(trainers["vae"].call("update", size, True))
    median = {kind: statistics.median(found) for kind, found in seconds.items()}
    peak = product.flops / median["product"]
    figures: Figures = {
        "step_batch": size,
        "step_peak_gflops": peak / 1e9,
        "step_peak_bits": torch.finfo(dtype).bits,  # 16 is bfloat16
    }
    for kind in kinds:
        figures[f"{kind}_step_images_per_s"] = size / median[kind]
        figures[f"{kind}_step_gflops_per_image"] = flops[kind] / size / 1e9
        figures[f"{kind}_parameters"] = trainers[kind].call("parameters")
        figures[f"{kind}_step_flops_utilization"] = flops[kind] / median[kind] / peak
    if hard:
        figures["vae_hard_step_images_per_s"] = size / statistics.median(hard)
    return figures


def _against_dense(trainers: Trainers, size: int, repeats: int) -> Figures:
    seconds = _median_steps(trainers, ("vae", *DENSE), size, repeats)
    ours_mb, dense_mb = (trainers[kind].call("peak_mb") for kind in ("vae", "dense"))
    return {
        "dense_batch": size,
        "vae_step_s": seconds["vae"],
        "vae_step_dense_s": seconds["dense"],
        "vae_step_speedup_vs_dense": seconds["dense"] / seconds["vae"],
        "vae_step_speedup_vs_dense_same_allocator": seconds["dense_allocator"] / seconds["vae"],
        "vae_step_speedup_vs_dense_pasting": seconds["dense_pasting"] / seconds["vae"],
        "vae_step_dense_peak_mb": dense_mb,
        "vae_step_memory_vs_dense": ours_mb / dense_mb,
    }
