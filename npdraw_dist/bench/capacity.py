"""The capacity plan: what a run of many images on many GPUs takes, from the figures of a bench.

Plain arithmetic: for each image a stage uses so much time of a core, of the driver (the process of the
command), of a GPU and of the network. Nothing is assumed to overlap. `Cluster` holds what a bench on one
machine cannot measure.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from npdraw_dist.bank.patches import OVERSAMPLED
from npdraw_dist.bench.workload import Facts, Figures
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.merged import FEW, most_merged
from npdraw_dist.pipeline.bank import PILOT_IMAGES, SHARED_BYTES
from npdraw_dist.pipeline.progress import results
from npdraw_dist.pipeline.stage_job import MOST_REPORTS, report_interval, window_rows
from npdraw_dist.pipeline.vae import CALIBRATED, CALIBRATED_DRAWS

GB = 1e9
# Of the driver for a shard that it has written: keys of its three files, which it lists twice, a thousand at
# once; and its facts. What a start reads again is left out.
LISTING_REQUESTS, FACTS_BYTES = 2 * 3 / 1000, 2_000
HASH_BYTES = 16  # of an id, written and read once
FITS = 6  # times that the fit of the temperatures computes the bound of all its images; on glyphs 5 to 7
FORWARD = 1 / 3  # of a training step: the rest is the backward pass
LIBRARIES_GB = 0.6  # Python, torch, Ray and a shard, in each process of a stage


@dataclass(frozen=True)
class Cluster:
    """A cluster of `gpus`; the rest is assumed, and printed with the plan."""

    gpus: int
    gpus_per_node: int = 8
    cores_per_gpu: int = 8
    node_gbit_per_s: float = 25.0  # of the network, and of a shared storage
    node_memory_gb: float = 512.0
    gpu_gflops: float = 5_000.0  # reached in such small layers, if the bench measured no GPU
    start_s: float = 20.0  # of the workers of a stage
    report_s: float = 1.0  # of a validation and its checkpoint, apart from the images
    request_s: float = 0.03  # latency of a request to an object store
    task_s: float = 0.007  # of the driver for a task, as measured on a core of an Intel Xeon of 2.3 GHz
    here: bool = False  # the machine that was measured, without GPUs: its cores train too

    @classmethod
    def of_machine(cls, figures: Facts) -> "Cluster":
        """The machine of the figures as a cluster of one node with a local disk."""
        cores = int(_number(figures, "cores"))
        return cls(1, 1, cores, request_s=0.0, start_s=5.0, here=True)

    def __str__(self) -> str:
        return f"the measured machine, {self.cores} cores" if self.here else f"{self.gpus} GPUs"

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    @property
    def cores(self) -> int:
        return self.gpus * self.cores_per_gpu

    @property
    def node_bytes_per_s(self) -> float:
        return self.node_gbit_per_s * GB / 8


@dataclass(frozen=True)
class Stage:
    """What a stage costs. `*_us`, `*_bytes`: an image; `fixed_*`, `worker_bytes`: the stage as a whole."""

    name: str
    core_us: float = 0.0  # shared by all cores
    driver_us: float = 0.0
    gpu_us: float = 0.0  # shared by all GPUs
    network_bytes: float = 0.0  # in and out, shared by all nodes
    exchange_bytes: float = 0.0  # between the nodes, through each of them
    stored_bytes: float = 0.0
    driver_bytes: float = 0.0
    requests: float = 0.0  # of the driver to the storage, those at once counted as one
    report_every: int = 0  # images from one validation and checkpoint to the next; 0: none
    validated: int = 0  # images of a validation
    fixed_s: float = 0.0
    fixed_driver_bytes: float = 0.0
    worker_bytes: float = 0.0

    def seconds(self, images: float, cluster: Cluster) -> dict[str, float]:
        """Seconds of each resource; the sum is the time that the stage takes."""
        network = self.network_bytes / cluster.nodes + self.exchange_bytes
        interval = report_interval(int(images), self.report_every)
        reports = math.ceil(images / interval) if self.report_every else 0
        validation_s = self.validated * FORWARD * self.gpu_us / 1e6 / cluster.gpus
        return {
            "cores": images * self.core_us / 1e6 / cluster.cores,
            "GPUs": images * self.gpu_us / 1e6 / cluster.gpus,
            "network": images * network / cluster.node_bytes_per_s,
            "driver": images * self.driver_us / 1e6,
            "storage": images * self.requests * cluster.request_s,
            "reports": reports * (cluster.report_s + validation_s),
            "start": cluster.start_s + self.fixed_s,
        }

    def driver_gb(self, images: float) -> float:
        return LIBRARIES_GB + (self.fixed_driver_bytes + images * self.driver_bytes) / GB

    def worker_gb(self) -> float:
        return LIBRARIES_GB + self.worker_bytes / GB


def stages(experiment: Experiment, figures: Facts, cluster: Cluster, images: float = math.inf) -> list[Stage]:
    """The stages of a run that trains on each of `images` once. Raises UserError on missing figures."""
    of = partial(_number, figures)
    pixels = math.prod(experiment.data.shape)
    if of("pixels") != pixels:
        raise UserError(
            f"the figures are of images of {of('pixels'):g} values, not {pixels}; plan with the "
            "settings that were measured, as in --preset"
        )
    part_bytes = experiment.data.shape[0] * experiment.grid.patch**2
    raw, parsed = of("prepare_bytes_per_image"), of("parse_bytes_per_image")
    shard = 1 / images_of_a_task(experiment, images)
    kept = min(experiment.bank.max_patches, images * of("bank_patches_per_image"))
    pilot = min(PILOT_IMAGES * of("bank_patches_per_image"), OVERSAMPLED * kept)
    held = OVERSAMPLED * kept if kept * part_bytes <= SHARED_BYTES else pilot  # patches in the driver
    # What older versions did not measure counts as nothing: to draw or decode an image, to read it again.
    made_us, once_us, load_us = (
        float(figures.get(f"{name}_us_per_image") or 0.0) for name in ("read", "read_once", "load")
    )
    # What is done once for a file, each worker does that has a shard of it.
    made_us += once_us * min(cluster.cores, float(figures.get("shards_of_a_file") or 1.0))
    slower = _when_all_work(figures)
    driver: dict[str, Any] = {"driver_us": 1e6 * cluster.task_s * shard}
    files: dict[str, Any] = {  # of the stages that write shards
        **driver,
        "driver_bytes": FACTS_BYTES * shard,
        "requests": LISTING_REQUESTS * shard,
    }
    return [
        Stage(
            "prepare",
            core_us=slower * (made_us + of("prepare_us_per_image") + of("ids_us_per_image")),
            network_bytes=2 * raw + 2 * HASH_BYTES,
            stored_bytes=raw + HASH_BYTES,
            **files,
        ),
        Stage(
            "bank",
            core_us=slower * (load_us + experiment.canvas_grid.places / of("patches_per_s") * 1e6),
            network_bytes=raw,
            **driver,
            # Of all patches the candidates for the sample leave the tasks, with a key of 8 bytes.
            fixed_s=clustering_s(figures, kept)
            + held * of("bank_driver_us_per_image") / of("bank_patches_per_image") * 1e-6
            + OVERSAMPLED * kept * (part_bytes + 8) / cluster.node_bytes_per_s,
            fixed_driver_bytes=held / OVERSAMPLED * (2 * (part_bytes + 8) + 4 * part_bytes),
        ),
        Stage(
            "parse",
            core_us=slower * (of("parse_shard_us_per_image") + of("ids_us_per_image")),
            network_bytes=raw + parsed + 2 * HASH_BYTES,
            stored_bytes=parsed + HASH_BYTES,
            **files,
        ),
        *(_training(kind, experiment, figures, cluster) for kind in ("prior", "vae")),
    ]


def _number(figures: Facts, name: str) -> float:
    value = figures.get(name)
    if not isinstance(value, int | float):
        raise UserError(f"the figures lack {name}; write them again with npdraw_dist.bench --out")
    return value


def _when_all_work(figures: Facts) -> float:
    """How many times as long a core takes while all others of the machine work too, by the section `parse`.

    Two threads of one core, which count as two cores, share what it has. 1 if it was not measured.
    """
    alone, together = figures.get("parse_images_per_s_of_a_core"), figures.get("parse_images_per_s")
    if not isinstance(alone, int | float) or not isinstance(together, int | float):
        return 1.0
    return max(alone * _number(figures, "cores") / together, 1.0)


def clustering_s(figures: Facts, patches: float) -> float:
    """Seconds in which the machine of the figures clusters `patches`.

    K-means settles in fewer passes over more patches: on glyphs (512 parts) in some 19 over 200,000, 15 over
    800,000 and 8 over 20,000,000. Figures of older versions: in as many as over the patches measured.
    """
    measured, known_s = _number(figures, "kmeans_patches"), _number(figures, "kmeans_s")
    if figures.get("search_us_per_patch") is None or patches <= measured:
        return known_s * patches / measured
    pass_s = _number(figures, "search_us_per_patch") / 1e6 / float(figures.get("torch_threads") or 1)

    def passes_s(count: float) -> float:
        return min(max(19 - 5.5 * math.log10(count / 200_000), 5), 25) * count * pass_s

    return max(known_s - passes_s(measured), 0) + passes_s(patches)


def _training(kind: str, experiment: Experiment, figures: Facts, cluster: Cluster) -> Stage:
    of, settings = partial(_number, figures), experiment.train
    parameters = of(f"{kind}_parameters")
    if figures.get("gpu") or cluster.here:
        gpu_us = 1e6 / of(f"{kind}_step_images_per_s")
        if kind == "vae" and (hard := figures.get("vae_hard_step_images_per_s")):
            relaxed = experiment.vae.relaxed_share
            gpu_us = relaxed * gpu_us + (1 - relaxed) * 1e6 / float(hard)
    else:
        gpu_us = of(f"{kind}_step_gflops_per_image") / cluster.gpu_gflops * 1e6
    batch = global_batch(experiment, kind, cluster)
    # A ring of nodes sends every gradient twice a step.
    ring = 2 * (cluster.nodes - 1) / cluster.nodes
    window = max(2 * batch, window_rows(experiment))
    image_bytes = math.prod(experiment.data.shape) + 24 * experiment.steps
    # Bounds that the fit of the posterior's temperatures computes.
    is_fitted = kind == "vae" and experiment.model.kind == "npdraw"
    fitted = FITS * CALIBRATED * CALIBRATED_DRAWS if is_fitted else 0
    return Stage(
        kind,
        gpu_us=gpu_us,
        fixed_s=fitted * FORWARD * gpu_us / 1e6,
        network_bytes=of("parse_bytes_per_image"),
        exchange_bytes=ring * 4 * parameters / batch,
        report_every=settings.eval_every_images,
        validated=experiment.validated_in(kind),
        worker_bytes=3 * window * image_bytes + of(f"{kind}_step_peak_mb") * 2**20 + 16 * parameters,
    )


def images_of_a_task(experiment: Experiment, images: float) -> int:
    """Of the stages that read the data: a shard, or some shards as one where there are many."""
    rows, most = experiment.data.shard_rows, most_merged(experiment.data)
    merged = int(min(images / rows / FEW, most))
    return rows * max(merged, 1)


def global_batch(experiment: Experiment, kind: str, cluster: Cluster) -> int:
    """Images of a step of a stage that trains: its batch, or more if a GPU had no micro-batch of it."""
    size, micro = experiment.batch_of(kind, workers=1)
    return max(size, micro * cluster.gpus)


def driver_limit(found: Sequence[Stage], cluster: Cluster) -> tuple[str, float]:
    """The stage whose driver is the first to fill a node's memory as images grow, and at how many."""
    limits = {
        stage.name: (cluster.node_memory_gb * GB - stage.fixed_driver_bytes) / stage.driver_bytes
        for stage in found
        if stage.driver_bytes
    }
    name = min(limits, key=lambda key: limits[key])
    return name, limits[name]


def show(experiment: Experiment, figures: Facts, images: float, cluster: Cluster) -> None:
    """Prints the plan: a row for each stage, what saturates first, and what was assumed."""
    table = Table(title=f"{images:,.0f} images on {cluster}")
    titles = ("stage", "hours", "most of it", "stored, GB", "network, GB", "driver, GB", "a worker, GB")
    for column in titles:
        table.add_column(column, justify="left" if column in ("stage", "most of it") else "right")
    found = stages(experiment, figures, cluster, images)
    total_s, driver_s = 0.0, 0.0
    for stage in found:
        seconds = stage.seconds(images, cluster)
        stage_s, most = sum(seconds.values()), max(seconds, key=lambda key: seconds[key])
        total_s, driver_s = total_s + stage_s, driver_s + seconds["driver"]
        moved = images * (stage.network_bytes + stage.exchange_bytes * cluster.nodes) / GB
        numbers = (images * stage.stored_bytes / GB, moved, stage.driver_gb(images), stage.worker_gb())
        part = f"{'training' if cluster.here and most == 'GPUs' else most} {seconds[most] / stage_s:.0%}"
        table.add_row(stage.name, f"{stage_s / 3600:.2f}", part, *(f"{number:,.1f}" for number in numbers))
    results.print(table)
    name, limit = driver_limit(found, cluster)
    driver = "The driver has" if cluster.here else "More GPUs do not shorten the driver's"
    results.print(
        f"{total_s / 3600:.1f} hours in all. Hours, storage and network grow in proportion to the images, "
        f"except for {cluster.start_s:.0f} s a stage and the clustering; a worker's memory does not grow.\n"
        f"{driver} {driver_s / 3600:.2f} hours, {driver_s / total_s:.1%} of it. "
        f"As the images grow, the driver of {name} is the first to fill a node, at {limit:,.2g} images.\n"
        f"{_assumed(experiment, figures, cluster, images)}"
    )


def _assumed(experiment: Experiment, figures: Facts, cluster: Cluster, images: float) -> str:
    """What the plan takes for granted."""
    batch, settings = global_batch(experiment, "vae", cluster), experiment.train
    asked, rate = settings.batch_size, settings.rate_batch or settings.batch_size
    larger = f" (train.batch_size is {asked}; with train.rate_batch {rate} the rates follow)" * (
        batch > asked
    )
    gpus = f"{cluster.gpu_gflops:,.0f} GFLOP/s of a GPU, because none was measured"
    parts: tuple[str, ...] = (
        f"prior and VAE see every image once, in a global batch of {batch:,}{larger}",
        f"a validation and a checkpoint every {settings.eval_every_images:,} images (train.eval_every_images)"
        f", at most {MOST_REPORTS:,} times, {cluster.report_s:g} s each beside the images",
        f"{cluster.gpus_per_node} GPUs and {cluster.node_memory_gb:g} GB a node, {cluster.cores_per_gpu} "
        f"cores a GPU as fast as those measured, {cluster.node_gbit_per_s:g} Gbit/s",
        f"storage as fast as the network, {cluster.request_s:g} s for a request to it",
        f"{images_of_a_task(experiment, images):,} images a task of the stages that read the data, each "
        f"{1000 * cluster.task_s:g} ms of the driver",
        "the GPUs are those measured" if figures.get("gpu") else gpus,
        "nothing overlaps; samples and scores are not planned",
    )
    if cluster.here:
        parts = (*parts[:2], f"{cluster.start_s:g} s for the workers of a stage to start", parts[-1])
    return f"Assumed: {'; '.join(parts)}."


def read(path: Path) -> Facts:
    """The figures that `npdraw_dist.bench --out` wrote. Raises UserError if there are none."""
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--from {path} does not hold figures: {error}") from None
    if not isinstance(figures, dict):
        raise UserError(f"--from {path} does not hold figures; write one with npdraw_dist.bench --out")
    return figures


def plan_errors(figures: Facts) -> Figures:
    """Predicted / measured seconds - 1 of the larger parses of the section `scale`.

    The smallest one gives the time to start. Of the cores, the driver and Ray itself take one.
    """
    found = (re.fullmatch(r"scale_parse_(\d+)_wall_s", name) for name in figures)
    least, *rest = sorted(int(match[1]) for match in found if match)
    of = partial(_number, figures)
    actors = max(int(of("cores")) - 1, 1)
    image_s = (of("parse_shard_us_per_image") / actors + of("ids_us_per_image")) / 1e6  # ids: in the driver
    start_s = of(f"scale_parse_{least}_wall_s") - least * image_s
    predicted_s = {size: start_s + size * image_s for size in rest}
    return {f"plan_error_{n}": s / of(f"scale_parse_{n}_wall_s") - 1 for n, s in predicted_s.items()}
