"""Section `scale`: cost and memory of the real commands as the data grow; minutes long.

Each size is a set of Parquet files (the images repeated under new ids), each run a fresh process of
`npdraw_dist.train`, whose tree of processes is watched: the driver and its Ray workers.
Shapes: N images, C channels, H x W pixels.
"""

import json
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray  # noqa: F401  # before psutil, which lies in Ray's wheel

import psutil  # type: ignore[import-not-found, import-untyped]  # isort: skip

from npdraw_dist.bench import processes
from npdraw_dist.bench.workload import Figures, Workload
from npdraw_dist.config.load import build, merge
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.prepare import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.pipeline.progress import console

SIZES = (10_000, 60_000, 600_000)
BANK_PATCHES = 5_000_000
PARSE_BANK_PATCHES = 200_000
SAMPLE_EVERY_S = 0.2
ROWS = 1_024  # an actor's first shard holds its warm-up: not the median of the ten of the smallest size


def run(work: Workload) -> Figures:
    """Seconds an image and peak memory of the parse at SIZES; the bank of BANK_PATCHES patches."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="npdraw-bench-") as folder:
        for size in SIZES:
            figures |= parse_of(work, size, Path(folder) / f"{size}")
            if size == SIZES[1]:
                figures |= bank_of(work, Path(folder) / f"{size}")
    small, middle, large = (figures[f"scale_parse_{n}_us_per_image"] for n in SIZES)
    figures["scale_cost_spread"] = max(small, middle, large) / min(small, middle, large) - 1
    for who in ("driver", "worker"):
        before, after = (figures[f"scale_parse_{n}_{who}_mb"] for n in SIZES[1:])
        figures[f"scale_{who}_memory_growth"] = after / before - 1
    return figures


def parse_of(work: Workload, size: int, folder: Path) -> Figures:
    """The stage `parse` of `size` images in a new `folder`.

    us_per_image: microseconds in which an actor reads, parses and writes, the median over shards;
    least_us_per_image: the least over shards, which a busy machine disturbs least;
    actor_us_per_image: their mean, first shards of an actor with all that they load included;
    wall_s: with the start of the actors.
    """
    write_repeated(work, size, folder / "data" / "train")
    experiment = build(merge(json.loads(work.experiment.model_dump_json()), overrides(work, folder, False)))
    train(experiment, folder, "parse", "bank")
    peaks = train(experiment, folder, "parse", "parse")
    manifest = json.loads((folder / "parse" / "parses" / "manifest.json").read_text())
    assert manifest["images"] == size, f"{manifest['images']} of {size} images parsed"
    sidecars = [json.loads(path.read_text()) for path in (folder / "parse" / "parses" / ".done").iterdir()]
    each = [facts["seconds"] / facts["images"] for facts in sidecars]
    return {
        f"scale_parse_{size}_us_per_image": statistics.median(each) * 1e6,
        f"scale_parse_{size}_least_us_per_image": min(each) * 1e6,
        f"scale_parse_{size}_actor_us_per_image": manifest["actor_seconds"] / size * 1e6,
        f"scale_parse_{size}_wall_s": manifest["seconds"],
        f"scale_parse_{size}_images_per_s": manifest["images_per_s"],
        f"scale_parse_{size}_driver_mb": peaks.driver,
        f"scale_parse_{size}_worker_mb": peaks.worker,
    }


def bank_of(work: Workload, folder: Path) -> Figures:
    """The stage `bank` of the images in `folder`, from every corner of the canvas."""
    experiment = build(merge(json.loads(work.experiment.model_dump_json()), overrides(work, folder, True)))
    peaks = train(experiment, folder, "bank", "bank")
    manifest = json.loads((folder / "bank" / "bank" / "manifest.json").read_text())
    extraction = manifest["seconds"] - manifest["seconds_clustering"]
    return {
        "scale_bank_patches": manifest["patches"],
        "scale_bank_patches_seen": manifest["patches_seen"],
        "scale_bank_collected_patches_per_s": manifest["patches_seen"] / extraction,
        "scale_bank_clustering_s": manifest["seconds_clustering"],
        "scale_bank_wall_s": manifest["seconds"],
        "scale_bank_objective": manifest["objective"],
        "scale_bank_driver_mb": peaks.driver,
        "scale_bank_worker_mb": peaks.worker,
    }


def write_repeated(work: Workload, size: int, folder: Path) -> None:
    """`size` images as Parquet files of ROWS, the images of `work` again and again."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, size, ROWS):
        numbers = np.arange(start, min(start + ROWS, size))
        rows = Rows([f"{n:08d}" for n in numbers], work.images[numbers % len(work.images)])
        (folder / f"{start:08d}.parquet").write_bytes(to_parquet(rows))


def overrides(work: Workload, folder: Path, every_corner: bool) -> dict[str, Any]:
    """The settings of a set that `write_repeated` wrote in `folder`, of which all is for training."""
    channels, height, width = work.images.shape[1:]
    if height != width:
        raise UserError("the section scale takes square images")
    parquet = {"source": "parquet", "path": str(folder / "data"), "image_size": height, "channels": channels}
    data = {**parquet, "valid_fraction": 0.0, "test_fraction": 0.0, "fraction": 1.0}
    if every_corner:
        bank = {"max_patches": BANK_PATCHES, "sampling": "places"}
        parse = {"steps": None, "order": "aligned"}
        return {"data": data, "bank": bank, "grid": {"stride": 1}, "parse": parse}
    return {"data": data, "bank": {"max_patches": PARSE_BANK_PATCHES}}


class Peaks:
    """The largest resident memory seen, MiB: of the driver, and of whichever Ray worker has most."""

    driver = worker = 0.0

    def see(self, driver: psutil.Process) -> None:
        try:
            self.driver = max(self.driver, _rss_mb(driver))
            for process in driver.children(recursive=True):
                if (process.cmdline() or [""])[0].startswith("ray::"):
                    self.worker = max(self.worker, _rss_mb(process))
        except psutil.Error:
            return  # a process that ended meanwhile


def _rss_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / (1 << 20)


@contextmanager
def watched(process: subprocess.Popen[str]) -> Iterator[Peaks]:
    """`Peaks` of a process and of those it starts, looked at every SAMPLE_EVERY_S."""
    peaks, stop, driver = Peaks(), threading.Event(), psutil.Process(process.pid)

    def watch() -> None:
        while not stop.wait(SAMPLE_EVERY_S):
            peaks.see(driver)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        stop.set()
        watcher.join()


def train(experiment: Experiment, folder: Path, name: str, stage: str) -> Peaks:
    """Runs one stage by the command itself, in a local Ray of its own; returns its peaks."""
    console.print(f"scale: stage {stage} of {folder.name} images")
    process = processes.start_training(experiment, folder, name, [stage])
    with watched(process) as peaks:
        processes.finish(process)
    console.print(f"  driver {peaks.driver:,.0f} MiB, largest worker {peaks.worker:,.0f} MiB at most")
    return peaks
