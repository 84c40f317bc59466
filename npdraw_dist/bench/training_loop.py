"""Section `training`: a VAE training loop in this process, under Ray Train, and on two workers; its start.

The experiment is the same each time: its global batch, its micro-batches, and the threads of all workers.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from npdraw_dist.bench import commands
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.load import with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.pipeline import bank, parse, prior, vae
from npdraw_dist.pipeline.stage_job import memory_feed, stream_feed
from npdraw_dist.pipeline.store import FOLDERS, Store
from npdraw_dist.training.context import Context
from npdraw_dist.training.feed import Feed
from npdraw_dist.training.launch import start_ray
from npdraw_dist.training.loop import Budget, Data, train

QUICK_IMAGES, FULL_IMAGES = 1_000, 5_000
QUICK_REPEATS, FULL_REPEATS = 1, 3
SHARED = ("bank", "parse", "prior")


def run(work: Workload) -> Figures:
    """Images/s of each layout and their ratios, medians of interleaved repeats.

    `training_plain`: a loop in this process. `training_ray_1x<n>`: a worker of n threads.
    `training_ray_2x<m>`: two workers of m = n / 2 threads. `ray_loop_ratio`: the second over the first;
    `two_worker_ratio`, with at least two cores: the third over the second. `data_wait_share`: of the
    plain loop, from memory and streamed. `startup_s`: from the start of the command, with all stages
    before the VAE done, to its first step.
    """
    cores = os.cpu_count() or 1
    start_ray(work.experiment.scale)
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as folder:
        base = Store.open(folder, "stages")
        experiment = _experiment(work)
        for stage in (bank, parse, prior):
            stage.run(experiment, base)
        waits: list[float] = []

        def plain_rate(name: str) -> float:
            summary = _plain(experiment, base, cores)
            waits.append(summary["data_wait_share"])
            return float(summary["images_per_s"])

        layouts: dict[str, Callable[[str], float]] = {
            "training_plain": plain_rate,
            f"training_ray_1x{cores}": partial(_ray_rate, experiment, base, 1, cores),
        }
        if cores > 1:
            layouts[f"training_ray_2x{cores // 2}"] = partial(_ray_rate, experiment, base, 2, cores // 2)
        rates: dict[str, list[float]] = {name: [] for name in layouts}
        for repeat in range(QUICK_REPEATS if work.quick else FULL_REPEATS):
            for name, rate in layouts.items():
                rates[name].append(rate(f"{name}-{repeat}"))
        streamed = _plain(experiment, base, cores, streamed=True)
        ray.shutdown()
        startup_s = _startup_s(experiment, Path(folder), "stages")
    plain, one, *two = rates.values()
    return {
        **{f"{name}_images_per_s": statistics.median(found) for name, found in rates.items()},
        "ray_loop_ratio": _ratio(one, plain),
        **({"two_worker_ratio": _ratio(two[0], one)} if two else {}),
        "data_wait_share": statistics.median(waits),
        "data_wait_share_streamed": streamed["data_wait_share"],
        "streamed_first_wait_s": streamed["first_wait_s"],
        "startup_s": startup_s,
    }


def _ratio(rates: list[float], of: list[float]) -> float:
    """The median over repeats, each of neighbours in time: a machine's speed drifts in minutes."""
    return statistics.median(a / b for a, b in zip(rates, of, strict=True))


def _experiment(work: Workload) -> Experiment:
    """The experiment with at least two micro-batches a batch, a prior of one step, one validation."""
    settings, images = work.experiment.train, QUICK_IMAGES if work.quick else FULL_IMAGES
    batch = max(settings.batch_size, 2 * settings.micro_batch)
    train_settings = {"batch_size": batch, "eval_every_images": images, "eval_batches": 1}
    return with_changes(
        work.experiment, {"prior": {"images": batch}, "vae": {"images": images}, "train": train_settings}
    )


def _plain(experiment: Experiment, base: Store, threads: int, streamed: bool = False) -> dict[str, Any]:
    """The summary of the loop in this process, without Ray Train."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(experiment.seed)
        settings = experiment.train
        objective = vae.make_objective(experiment, vae.load_start(experiment, base))
        if streamed:
            feed: Feed = stream_feed(base.parses("train"), experiment)
        else:
            feed = memory_feed(base.parses("train").in_id_order(), experiment)
        valid = base.parses("valid").sample(settings.micro_batch, experiment.seed)
        budget = Budget(experiment.vae.images, settings.eval_every_images)
        return train(objective, Data(feed, valid), settings, budget, experiment.seed, Context())
    finally:
        torch.set_num_threads(before)


def _ray_rate(experiment: Experiment, base: Store, workers: int, threads: int, name: str) -> float:
    """Images/s of the stage `vae` under Ray Train, in a run folder `name` next to `base`."""
    root = base.root.rpartition("/")[0]
    store = Store(base.filesystem, f"{root}/{name}", {FOLDERS[stage]: base.root for stage in SHARED})
    scale = {"num_workers": workers, "cpus_per_worker": threads, "use_gpu": False}
    return float(vae.run(with_changes(experiment, {"scale": scale}), store)["images_per_s"])


def _startup_s(experiment: Experiment, folder: Path, name: str) -> float:
    """Seconds from the start of the command to the first step of the VAE of the run <folder>/<name>."""
    one_step = with_changes(experiment, {"vae": {"images": experiment.train.batch_size}})
    store = Store.open(str(folder), name)
    store.claim(one_step)
    started = time.time()
    commands.finish(commands.start_training(one_step, folder, name, "vae"))
    return float(store.read_json("vae", "manifest.json")["first_step_at"]) - started
