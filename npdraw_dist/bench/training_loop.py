"""Section `training`, which measures `train` without Ray, with one worker of Ray Train, and with two.

Global batch, micro-batches and the total number of threads are the same in all three layouts.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.load import dump, with_changes
from npdraw_dist.config.schema import Experiment
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import COMPUTE, cpu_count
from npdraw_dist.training.device import CPU_ROWS

QUICK_IMAGES, FULL_IMAGES = 1_000, 5_000
QUICK_REPEATS, FULL_REPEATS = 1, 3


def run(work: Workload) -> Figures:
    """Measures images/s of the stage `vae` in each layout, and ratios, as medians over repeats in turns.

    `training_plain`: without Ray. `training_ray_1x<n>`: one worker with n threads. `training_ray_2x<m>`: two
    workers with m = n / 2 threads each. `ray_loop_ratio`: one worker over no Ray. `two_worker_ratio`: two
    workers over one, if there are two cores. `data_wait_share`, `data_wait_share_streamed`: share of the time
    that training without Ray waits for data, with images in memory or streamed (one run). `startup_s`: time
    from the start of the command on one worker, with all earlier stages done, to the first step.
    """
    cores = cpu_count()
    layouts = {"plain": (0, cores), f"ray_1x{cores}": (1, cores), f"ray_2x{cores // 2}": (2, cores // 2)}
    if cores == 1:
        del layouts["ray_2x0"]
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(dump(_experiment(work)))
        _train(folder, "begun", "data,bank,parse,prior")
        repeats = range(QUICK_REPEATS if work.quick else FULL_REPEATS)
        turns = [[_vae(folder, *layout) for layout in layouts.values()] for _ in repeats]
        streamed = _vae(folder, 0, cores, "--data.cache_mb", "0")
    rates = [[done["images_per_s"] for done in turn] for turn in turns]
    by_name = zip(layouts, map(median, zip(*rates, strict=True)), strict=True)
    return {
        **{f"training_{name}_images_per_s": rate for name, rate in by_name},
        # A machine's speed drifts within minutes, so each ratio compares runs that follow each other.
        "ray_loop_ratio": median(turn[1] / turn[0] for turn in rates),
        **({"two_worker_ratio": median(turn[2] / turn[1] for turn in rates)} if cores > 1 else {}),
        "data_wait_share": median(turn[0]["data_wait_share"] for turn in turns),
        "data_wait_share_streamed": streamed["data_wait_share"],
        "startup_s": median(turn[1]["startup_s"] for turn in turns),
    }


def _experiment(work: Workload) -> Experiment:
    """The experiment with at least two micro-batches per batch, one step of the prior and one validation."""
    settings, images = work.experiment.train, QUICK_IMAGES if work.quick else FULL_IMAGES
    rows = CPU_ROWS if settings.micro_batch == "auto" else settings.micro_batch
    batch = max(settings.batch_size, 2 * rows)
    train = {"batch_size": batch, "eval_every_images": images, "eval_images": rows}
    budgets = {"prior": {"images": batch}, "vae": {"images": images}}
    return with_changes(work.experiment, {**budgets, "train": train, "scale": {"use_gpu": False}})


def _vae(folder: Path, workers: int, cpus: int, *flags: str) -> dict[str, Any]:
    """Runs the stage `vae` in a copy of the run; returns the stage's manifest with `startup_s` added."""
    scale = ("--scale.num_workers", str(workers), "--scale.cpus_per_worker", str(cpus))
    shutil.copytree(folder / "begun", folder / "copy")
    started = time.time()
    _train(folder, "copy", "vae", *scale, *flags)
    manifest = json.loads((folder / "copy" / "vae" / "manifest.json").read_text())
    shutil.rmtree(folder / "copy")
    return {**manifest, "startup_s": manifest["first_step_at"] - started}


def _train(folder: Path, name: str, stages: str, *flags: str) -> None:
    """Runs `train` as a user does. Raises UserError, with the last line of its errors, if it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in {"RAY_ADDRESS", *COMPUTE}}
    where = ("--config", str(folder / "config.yaml"), "--storage", str(folder), "--name", name)
    command = [sys.executable, "-m", "npdraw_dist.train", *where, "--stages", stages, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command[1:])} failed: {last}")
