"""Section `scale`: cost and memory of the real commands as the data grow. It takes many minutes.

The data are the images of the workload, repeated under new ids. Each run is a process of
`npdraw_dist.train`, whose memory is watched: the driver and its Ray workers.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray  # noqa: F401  # before psutil, which is in Ray's wheel

import psutil  # type: ignore[import-not-found, import-untyped]  # isort: skip

from npdraw_dist.bench import commands
from npdraw_dist.bench.repeated_images import experiment_on, write_repeated
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.pipeline.progress import console

SIZES = (10_000, 60_000, 600_000)
PARSE_CHANGES: dict[str, Any] = {"bank": {"max_patches": 200_000}}
# A bank of patches from every corner of the canvas, so that there are enough of them.
BANK_CHANGES: dict[str, Any] = {
    "bank": {"max_patches": 5_000_000},
    "grid": {"stride": 1},
    "parse": {"steps": None, "order": "aligned"},
}


def run(work: Workload) -> Figures:
    """Seconds an image and peak memory of the parse at SIZES, and the bank of 5 million patches."""
    figures: Figures = {}
    sizes = work.sizes or SIZES
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as folder:
        for size in sizes:
            figures |= _parse(work, size, Path(folder) / f"{size}")
            if size == sizes[1]:
                figures |= _bank(work, Path(folder) / f"{size}")
    costs = [figures[f"scale_parse_{n}_us_per_image"] for n in sizes]
    figures["scale_cost_spread"] = max(costs) / min(costs) - 1
    for process in ("driver", "worker"):
        before, after = (figures[f"scale_parse_{n}_{process}_mb"] for n in sizes[-2:])
        figures[f"scale_{process}_memory_growth"] = after / before - 1
    return figures


def _parse(work: Workload, size: int, folder: Path) -> Figures:
    """The stage `parse` of `size` images in a new `folder`.

    us_per_image: microseconds in which an actor reads, parses and writes, the median over shards;
    least_us_per_image: the least over shards, which a busy machine disturbs least;
    actor_us_per_image: their mean, with what the first shards of an actor load;
    wall_s: with the start of the actors.
    """
    write_repeated(work, size, folder)
    _run_stage(work, folder, "parse", "bank", PARSE_CHANGES)
    peaks = _run_stage(work, folder, "parse", "parse", PARSE_CHANGES)
    manifest = json.loads((folder / "parse" / "parses" / "manifest.json").read_text())
    assert manifest["images"] == size, f"{manifest['images']} of {size} images parsed"
    done = folder / "parse" / "parses" / ".done"
    sidecars = [json.loads(path.read_text()) for path in done.glob("train-*.json")]
    each = [facts["seconds"] / facts["rows"] for facts in sidecars]
    figures = {
        "us_per_image": statistics.median(each) * 1e6,
        "least_us_per_image": min(each) * 1e6,
        "actor_us_per_image": manifest["actor_seconds"] / size * 1e6,
        "wall_s": manifest["seconds"],
        "images_per_s": manifest["images_per_s"],
        "driver_mb": peaks.driver_mb,
        "worker_mb": peaks.worker_mb,
    }
    return {f"scale_parse_{size}_{name}": value for name, value in figures.items()}


def _bank(work: Workload, folder: Path) -> Figures:
    """The stage `bank` of the images in `folder`."""
    peaks = _run_stage(work, folder, "bank", "bank", BANK_CHANGES)
    manifest = json.loads((folder / "bank" / "bank" / "manifest.json").read_text())
    extraction_s = manifest["seconds"] - manifest["seconds_clustering"]
    return {
        "scale_bank_patches": manifest["patches"],
        "scale_bank_patches_seen": manifest["patches_seen"],
        "scale_bank_collected_patches_per_s": manifest["patches_seen"] / extraction_s,
        "scale_bank_clustering_s": manifest["seconds_clustering"],
        "scale_bank_wall_s": manifest["seconds"],
        "scale_bank_objective": manifest["objective"],
        "scale_bank_driver_mb": peaks.driver_mb,
        "scale_bank_worker_mb": peaks.worker_mb,
    }


@dataclass
class Peaks:
    """The largest resident memory seen, in MiB: of the driver, and of any one Ray worker."""

    driver_mb: float = 0.0
    worker_mb: float = 0.0

    def see(self, driver: psutil.Process) -> None:
        try:
            self.driver_mb = max(self.driver_mb, driver.memory_info().rss / (1 << 20))
            for process in driver.children(recursive=True):
                if (process.cmdline() or [""])[0].startswith("ray::"):
                    self.worker_mb = max(self.worker_mb, process.memory_info().rss / (1 << 20))
        except psutil.Error:
            return  # a process ended in the meantime


def _run_stage(work: Workload, folder: Path, name: str, stage: str, changes: dict[str, Any]) -> Peaks:
    """Runs a stage of the run <folder>/<name> by the command; returns its peaks."""
    console.print(f"scale: stage {stage} of {folder.name} images")
    process = commands.start_training(experiment_on(work, folder, changes), folder, name, stage)
    peaks, driver = Peaks(), psutil.Process(process.pid)
    commands.finish(process, watch=lambda: peaks.see(driver))
    console.print(f"  driver {peaks.driver_mb:,.0f} MiB, largest worker {peaks.worker_mb:,.0f} MiB at most")
    return peaks
