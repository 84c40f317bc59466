"""Section `step`: one training step of prior and VAE beside a matrix product and the dense reference.

Each is in a process of its own, and they work in turns, so that memory is its own and a busy moment
meets all of them.
"""

import statistics
from contextlib import ExitStack

import torch

from npdraw_dist.stages.bench import machine
from npdraw_dist.stages.bench.fresh import FreshProcess
from npdraw_dist.stages.bench.subjects import Subject, Trainer
from npdraw_dist.stages.bench.workload import Figures, Workload, seconds_of

DENSE_BATCH, QUICK_DENSE_BATCH = 500, 64
REPEATS, QUICK_REPEATS = 11, 3
DENSE_REPEATS = 2


def run(work: Workload) -> Figures:
    """images/s, share of the peak that the counted operations reach, and memory of a step.

    `vae_step_*` and `prior_step_*` are of the experiment's batch in its micro-batches; `*_vs_dense` of a
    batch of 500 (64 with --quick), the dense reference as one micro-batch, ours in the experiment's.
    `vae_step_speedup_vs_dense_pasting` is over the reference with our stem: what pasting alone brings.
    """
    dense_size = QUICK_DENSE_BATCH if work.quick else DENSE_BATCH
    size, threads = work.experiment.train.batch_size, torch.get_num_threads()
    subject = Subject.of(work, max(size, dense_size))
    kinds = ["prior", "vae", *(["dense", "dense_pasting"] if work.dense else [])]
    with ExitStack() as stack:
        trainers = {
            kind: stack.enter_context(FreshProcess(Trainer, subject, kind, threads)) for kind in kinds
        }
        figures = _utilisation(trainers, size, QUICK_REPEATS if work.quick else REPEATS)
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


def _against(trainers: dict[str, FreshProcess], size: int, repeats: int) -> Figures:
    names = ("vae", "dense", "dense_pasting")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            times[name].append(trainers[name].call("update", size))
    times["vae"].append(trainers["vae"].call("update", size))
    ours_s, dense_s, pasting_s = (statistics.median(found) for found in times.values())
    ours_mb, dense_mb, _ = (trainers[name].call("peak_mb") for name in names)
    return {
        "dense_batch": size,
        "vae_step_s": ours_s,
        "vae_step_dense_s": dense_s,
        "vae_step_speedup_vs_dense": dense_s / ours_s,
        "vae_step_speedup_vs_dense_pasting": pasting_s / ours_s,
        "vae_step_dense_peak_mb": dense_mb,
        "vae_step_memory_vs_dense": ours_mb / dense_mb,
    }
