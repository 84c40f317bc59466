"""The capacity plan: what a run of many images on many GPUs takes, from the figures of a bench.

Plain arithmetic: a stage costs so much of a core, of the driver (the one process of the command), of a
GPU and of the network an image, and nothing is taken to overlap. `Cluster` holds what no bench on one
machine can measure.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.pipeline.progress import console

GB = 1e9
LIBRARIES_GB = 0.6  # Python, torch, Ray and a shard, in each process of a stage


@dataclass(frozen=True)
class Cluster:
    """A cluster of `gpus`; what is not asked for is assumed, and printed with the plan."""

    gpus: int
    gpus_per_node: int = 8
    cores_per_gpu: int = 8
    node_gbit_per_s: float = 25.0  # of the network, and so of a shared storage
    node_memory_gb: float = 512.0
    gpu_gflops: float = 5_000.0  # reached in such small layers, where the bench had no GPU to measure on
    start_s: float = 20.0  # of the workers of a stage

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    @property
    def cores(self) -> int:
        return self.gpus * self.cores_per_gpu

    @property
    def node_bytes_per_s(self) -> float:
        return self.node_gbit_per_s * 1e9 / 8


@dataclass(frozen=True)
class Stage:
    """What one stage costs. `*_us` and `*_bytes` are of an image, the rest of the stage as a whole."""

    name: str
    core_us: float = 0.0  # shared by all cores
    driver_us: float = 0.0
    gpu_us: float = 0.0  # shared by all GPUs
    network_bytes: float = 0.0  # in and out, shared by all nodes
    exchange_bytes: float = 0.0  # between the nodes, through each of them
    stored_bytes: float = 0.0
    driver_bytes: float = 0.0
    fixed_s: float = 0.0
    fixed_driver_bytes: float = 0.0
    worker_bytes: float = 0.0

    def seconds(self, images: float, cluster: Cluster) -> dict[str, float]:
        """What its time goes into; the sum is the time it takes."""
        network = self.network_bytes / cluster.nodes + self.exchange_bytes
        return {
            "cores": images * self.core_us / 1e6 / cluster.cores,
            "GPUs": images * self.gpu_us / 1e6 / cluster.gpus,
            "network": images * network / cluster.node_bytes_per_s,
            "driver": images * self.driver_us / 1e6,
            "start": cluster.start_s + self.fixed_s,
        }

    def driver_gb(self, images: float) -> float:
        return LIBRARIES_GB + (self.fixed_driver_bytes + images * self.driver_bytes) / GB

    def worker_gb(self) -> float:
        return LIBRARIES_GB + self.worker_bytes / GB


def stages(experiment: Experiment, figures: Mapping[str, float], cluster: Cluster) -> list[Stage]:
    """The stages of a run that trains on every image once. Raises UserError on lacking figures."""
    try:
        return _stages(experiment, figures, cluster)
    except KeyError as error:
        raise UserError(f"the figures lack {error}; write them anew with npdraw_dist.bench --out") from None


def _stages(experiment: Experiment, figures: Mapping[str, float], cluster: Cluster) -> list[Stage]:
    channels, patch = experiment.data.shape[0], experiment.grid.patch
    pixels = math.prod(experiment.data.shape)
    if figures["pixels"] != pixels:
        raise UserError(
            f"the figures are of images of {figures['pixels']} values, not {pixels}; plan with the settings "
            "that were measured, as in --preset"
        )
    part_bytes = channels * patch**2
    raw, parsed = figures["prepare_bytes_per_image"], figures["parse_bytes_per_image"]
    patches = figures["bank_patches_per_image"]
    kept = experiment.bank.max_patches
    # A driver that checks for double ids holds three arrays of 8 bytes an id.
    ids = 24.0
    settings = experiment.train
    window = (
        max(2 * settings.batch_size, 4096) * 3 * (math.prod(experiment.data.shape) + 24 * experiment.steps)
    )
    training = {
        kind: Stage(
            kind,
            gpu_us=_gpu_us(kind, figures, cluster),
            network_bytes=parsed,
            exchange_bytes=_exchange(figures[f"{kind}_parameters"], settings.micro_batch, cluster),
            worker_bytes=window
            + figures[f"{kind}_step_peak_mb"] * 2**20
            + 16 * figures[f"{kind}_parameters"],
        )
        for kind in ("prior", "vae")
    }
    return [
        Stage(
            "prepare",
            core_us=figures["prepare_us_per_image"],
            driver_us=figures["parse_driver_us_per_image"],
            network_bytes=2 * raw,
            stored_bytes=raw,
            driver_bytes=ids,
        ),
        Stage(
            "bank",
            core_us=experiment.canvas_grid.places / figures["patches_per_s"] * 1e6,
            # All patches pass the driver, which keeps a sample of them.
            driver_us=figures["bank_driver_us_per_image"]
            + patches * part_bytes / cluster.node_bytes_per_s * 1e6,
            network_bytes=raw,
            fixed_s=figures["kmeans_s"] * kept / figures["kmeans_patches"],
            fixed_driver_bytes=kept * (2 * (part_bytes + 8) + 4 * part_bytes),
        ),
        Stage(
            "parse",
            core_us=figures["parse_shard_us_per_image"],
            driver_us=figures["parse_driver_us_per_image"],
            network_bytes=raw + 1.1 * parsed,  # the ids are read again
            stored_bytes=parsed,
            driver_bytes=ids,
        ),
        *training.values(),
    ]


def _gpu_us(kind: str, figures: Mapping[str, float], cluster: Cluster) -> float:
    if figures.get("gpu"):
        return 1e6 / figures[f"{kind}_step_images_per_s"]
    return figures[f"{kind}_step_gflops_per_image"] / cluster.gpu_gflops * 1e6


def _exchange(parameters: float, micro_batch: int, cluster: Cluster) -> float:
    """Bytes an image through each node: a ring sends every gradient twice a step of a micro-batch a GPU."""
    if cluster.nodes == 1:
        return 0.0
    ring = 2 * (cluster.nodes - 1) / cluster.nodes
    return ring * 4 * parameters / (micro_batch * cluster.gpus)


def driver_limit(found: list[Stage], cluster: Cluster) -> tuple[str, float]:
    """The stage whose driver first fills a node's memory as the images grow, and at how many images."""
    growing = [stage for stage in found if stage.driver_bytes]
    limits = {s.name: (cluster.node_memory_gb * GB - s.fixed_driver_bytes) / s.driver_bytes for s in growing}
    name = min(limits, key=lambda key: limits[key])
    return name, limits[name]


def show(experiment: Experiment, figures: Mapping[str, float], images: float, cluster: Cluster) -> None:
    """Prints the plan: a row a stage, what saturates first, and what was assumed."""
    table = Table(title=f"{images:,.0f} images on {cluster.gpus} GPUs")
    titles = ("stage", "hours", "most of it", "stored, GB", "network, GB", "driver, GB", "a worker, GB")
    for column in titles:
        table.add_column(column, justify="left" if column in ("stage", "most of it") else "right")
    found = stages(experiment, figures, cluster)
    total, driver = 0.0, 0.0
    for stage in found:
        seconds = stage.seconds(images, cluster)
        spent, most = sum(seconds.values()), max(seconds, key=lambda key: seconds[key])
        total, driver = total + spent, driver + seconds["driver"]
        moved = images * (stage.network_bytes + stage.exchange_bytes * cluster.nodes) / GB
        numbers = (images * stage.stored_bytes / GB, moved, stage.driver_gb(images), stage.worker_gb())
        share = f"{most} {seconds[most] / spent:.0%}"
        table.add_row(stage.name, f"{spent / 3600:.2f}", share, *(f"{number:,.1f}" for number in numbers))
    console.print(table)
    name, limit = driver_limit(found, cluster)
    console.print(
        f"{total / 3600:.1f} hours in all. Hours, storage and network grow in proportion to the images, but "
        f"for {cluster.start_s:.0f} s a stage and the clustering; a worker's memory does not grow.\n"
        f"More GPUs do not shorten the driver's part, {driver / 3600:.2f} hours. As images grow, the driver "
        f"of {name} is the first to fill a node, at {limit:,.2g} of them."
    )
    console.print(
        f"Assumed: every image is seen once by prior and VAE; {cluster.gpus_per_node} GPUs a node, "
        f"{cluster.cores_per_gpu} cores a GPU as fast as those measured, {cluster.node_gbit_per_s:g} Gbit/s "
        f"and {cluster.node_memory_gb:g} GB a node, storage as fast as the network; a micro-batch a GPU and "
        f"step; {_gpu_source(figures, cluster)}; nothing overlaps."
    )


def _gpu_source(figures: Mapping[str, float], cluster: Cluster) -> str:
    if figures.get("gpu"):
        return "the GPUs are those measured"
    return f"{cluster.gpu_gflops:,.0f} GFLOP/s of a GPU, for none was measured"


def read(path: Path) -> dict[str, float]:
    """The figures that `npdraw_dist.bench --out` wrote; raises UserError where it is no such file."""
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--from {path} is no file of figures: {error}") from None
    if not isinstance(figures, dict):
        raise UserError(f"--from {path} is no file of figures; write one with npdraw_dist.bench --out")
    return figures


def parse_seconds(figures: Mapping[str, float], images: int, start_s: float) -> float:
    """The stage `parse` on the machine of the figures, of whose cores the driver and Ray itself take one."""
    actors = max(int(figures["cores"]) - 1, 1)
    image_us = figures["parse_shard_us_per_image"] / actors + figures["parse_driver_us_per_image"]
    return start_s + images * image_us / 1e6


def errors(figures: Mapping[str, float], sizes: tuple[int, ...]) -> dict[str, float]:
    """Predicted / measured seconds - 1 of the parse of the larger `sizes`; the smallest gives the start."""
    least, *rest = sizes
    start = figures[f"scale_parse_{least}_wall_s"] - parse_seconds(figures, least, 0.0)
    return {
        f"plan_error_{size}": parse_seconds(figures, size, start) / figures[f"scale_parse_{size}_wall_s"] - 1
        for size in rest
    }
