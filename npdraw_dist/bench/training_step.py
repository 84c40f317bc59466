"""Section `step`: one training step of prior and VAE beside a matrix product and the dense reference.

Each is in a process of its own, and they work in turns, so that memory is its own and a busy moment
meets all of them.
"""

import statistics
from contextlib import ExitStack

import torch

from npdraw_dist.bench import machine
from npdraw_dist.bench.fresh_process import FreshProcess
from npdraw_dist.bench.subjects import Subject, Trainer
from npdraw_dist.bench.workload import Figures, Workload, seconds_of
from npdraw_dist.training.environment import ALLOCATOR
from npdraw_dist.training.resources import has_compiler

DENSE_BATCH, QUICK_DENSE_BATCH = 500, 64
REPEATS, QUICK_REPEATS = 11, 3
DENSE_REPEATS = 3
DENSE = ("dense", "dense_allocator", "dense_pasting")


def run(work: Workload) -> Figures:
    """images/s, share of the peak that the counted operations reach, and memory of a step.

    `vae_step_*` and `prior_step_*` are of the experiment's batch in its micro-batches; `*_vs_dense` of a
    batch of 500 (64 with --quick), the dense reference as one micro-batch, ours in the experiment's, and
    the reference as it would be run without this project: with the allocator's defaults. With our settings of
    it: `*_same_allocator`; with our stem as well, so that pasting alone differs: `*_dense_pasting`.
    Not with --quick: `compile_speedup`, the VAE step's time over that with `train.compile`, whose first steps
    take `compile_s`.
    """
    dense_size = QUICK_DENSE_BATCH if work.quick else DENSE_BATCH
    size, threads = work.experiment.train.batch_size, torch.get_num_threads()
    subject = Subject.of(work, max(size, dense_size))
    kinds = ["prior", "vae", *(DENSE if work.dense else [])]
    if not work.quick and has_compiler():
        kinds.append("compiled")
    with ExitStack() as stack:
        trainers = {
            kind: stack.enter_context(
                FreshProcess(Trainer, subject, kind, threads, without=ALLOCATOR if kind == "dense" else ())
            )
            for kind in kinds
        }
        for trainer in trainers.values():
            trainer.wait()
        figures = _utilisation(trainers, size, QUICK_REPEATS if work.quick else REPEATS)
        if "compiled" in trainers:
            figures |= _compiled(trainers, size)
        if "dense" in trainers:
            figures |= _against(trainers, dense_size, 1 if work.quick else DENSE_REPEATS)
        for kind in ("prior", "vae"):
            figures[f"{kind}_step_peak_mb"] = trainers[kind].call("peak_mb")
    return figures


def _utilisation(trainers: dict[str, FreshProcess], size: int, repeats: int) -> Figures:
    kinds = ("vae", "prior")
    flops = {kind: trainers[kind].call("flops", size) for kind in kinds}
    product = machine.Product(torch.float32)
    seconds: dict[str, list[float]] = {kind: [] for kind in ("product", *kinds)}
    for _ in range(repeats):
        for kind in kinds:
            seconds["product"] += seconds_of([product], 1)
            seconds[kind].append(trainers[kind].call("update", size))
    median = {kind: statistics.median(found) for kind, found in seconds.items()}
    peak = product.flops / median["product"]
    figures: Figures = {"step_batch": size, "step_peak_gflops": peak / 1e9}
    for kind in kinds:
        figures[f"{kind}_step_images_per_s"] = size / median[kind]
        figures[f"{kind}_step_gflops_per_image"] = flops[kind] / size / 1e9
        figures[f"{kind}_parameters"] = trainers[kind].call("parameters")
        figures[f"{kind}_step_flops_utilization"] = flops[kind] / median[kind] / peak
    return figures


def _compiled(trainers: dict[str, FreshProcess], size: int) -> Figures:
    eager, compiled = (
        statistics.median(times)
        for times in zip(
            *([trainers[kind].call("update", size) for kind in ("vae", "compiled")] for _ in range(REPEATS)),
            strict=True,
        )
    )
    start_s = trainers["compiled"].call("seconds_to_start")
    return {"compile_speedup": eager / compiled, "compile_s": start_s}


def _against(trainers: dict[str, FreshProcess], size: int, repeats: int) -> Figures:
    names = ("vae", *DENSE)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            times[name].append(trainers[name].call("update", size))
    seconds = {name: statistics.median(found) for name, found in times.items()}
    ours_mb, dense_mb = (trainers[name].call("peak_mb") for name in names[:2])
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
