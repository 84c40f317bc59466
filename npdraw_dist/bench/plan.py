"""`bench --plan`: the hours of a run on a cluster, from the figures that a bench measured on one machine.

What one machine cannot tell is a field of `Cluster`, and is printed as an assumption.
"""

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from npdraw_dist.bench.workload import Facts
from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.parses import READ_BYTES
from npdraw_dist.pipeline.progress import results
from npdraw_dist.pipeline.stage_job import is_streamed, row_bytes
from npdraw_dist.training.loop import report_interval


@dataclass(frozen=True)
class Cluster:
    """Assumptions about a cluster of `gpus`.

    here: it is the machine of the figures. Its cores train, and all workers share them.
    """

    gpus: int
    gpus_per_node: int = 8
    cores_per_gpu: int = 8
    node_gbit_per_s: float = 25.0  # network, and shared storage
    gpu_gflops: float = 5_000.0  # in such small layers, if the bench measured no GPU
    start_s: float = 20.0  # a stage's workers start
    report_s: float = 1.0  # a validation and its checkpoint
    here: bool = False

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.gpus_per_node)


@dataclass(frozen=True)
class Stage:
    """What an image takes; fixed_s: the stage as a whole. requests: to the storage, of the whole stream."""

    name: str
    core_us: float = 0.0
    gpu_us: float = 0.0
    network_bytes: float = 0.0  # in and out of all nodes
    stored_bytes: float = 0.0
    fixed_s: float = 0.0
    requests: float = 0.0

    def seconds(self, images: float, cluster: Cluster) -> dict[str, float]:
        """Seconds of each resource; the sum is the time that the stage takes."""
        return {
            "cores": images * self.core_us / 1e6 / (cluster.gpus * cluster.cores_per_gpu),
            "training" if cluster.here else "GPUs": images * self.gpu_us / 1e6 / cluster.gpus,
            "network": images * self.network_bytes / cluster.nodes / (cluster.node_gbit_per_s * 1e9 / 8),
            "the rest": cluster.start_s + self.fixed_s,
        }


def stages(experiment: Experiment, figures: Facts, cluster: Cluster, images: float) -> list[Stage]:
    """The stages of a run that trains on each of `images` once. Raises UserError on missing figures."""
    of, pixels = partial(_number, figures), math.prod(experiment.data.shape)
    if of("pixels") != pixels:
        raise UserError(
            f"the figures are of images of {of('pixels'):g} values, not {pixels}; give the measured --preset"
        )
    raw, parsed, ids_us = (of(f"{n}_per_image") for n in ("prepare_bytes", "parse_bytes", "ids_us"))
    patches = min(experiment.bank.max_patches, images * of("bank_patches_per_image"))
    extract_us = 1e6 * experiment.canvas_grid.places / of("patches_per_s")
    # Two threads of one core, which count as two cores, share what it has.
    slower = max(of("parse_images_per_s_of_a_core") * of("cores") / of("parse_images_per_s"), 1.0)
    prepare_us = of("read_us_per_image") + of("prepare_us_per_image") + ids_us
    parse_us = of("parse_shard_us_per_image") + ids_us
    kmeans_s = of("kmeans_s") * patches / of("kmeans_patches")
    return [
        Stage("prepare", slower * prepare_us, network_bytes=2 * raw, stored_bytes=raw),
        Stage("bank", slower * (of("load_us_per_image") + extract_us), network_bytes=raw, fixed_s=kmeans_s),
        Stage("parse", slower * parse_us, network_bytes=raw + parsed, stored_bytes=parsed),
        *(_training(kind, experiment, figures, cluster, images) for kind in ("prior", "vae")),
    ]


def _training(kind: str, experiment: Experiment, figures: Facts, cluster: Cluster, images: float) -> Stage:
    of = partial(_number, figures)
    if figures.get("gpu") or cluster.here:
        gpu_us = 1e6 / of(f"{kind}_step_images_per_s")
        if kind == "vae" and "vae_hard_step_images_per_s" in figures:
            relaxed = experiment.vae.relaxed_share
            gpu_us = relaxed * gpu_us + (1 - relaxed) * 1e6 / of("vae_hard_step_images_per_s")
    else:
        gpu_us = of(f"{kind}_step_gflops_per_image") / cluster.gpu_gflops * 1e6
    gradients = 2 * (cluster.nodes - 1) * 4 * of(f"{kind}_parameters")  # twice around a ring of nodes
    network = of("parse_bytes_per_image") + gradients / global_batch(experiment, kind, cluster)
    reports = math.ceil(images / report_interval(int(images), experiment.train.eval_every_images))
    fixed_s = reports * cluster.report_s
    if not is_streamed(experiment, kind, int(images)):
        return Stage(kind, 0.0, gpu_us, network, fixed_s=fixed_s)
    # Each read, and once the footer of each file; a worker that reads in another order reads them anew.
    files = math.ceil(images / experiment.data.rows_a_shard)
    reads = max(math.ceil(images * row_bytes(experiment) / READ_BYTES), files)
    requests = reads + min(cluster.gpus, files) * files
    return Stage(kind, of("stream_us_per_image"), gpu_us, network, fixed_s=fixed_s, requests=requests)


def global_batch(experiment: Experiment, kind: str, cluster: Cluster) -> int:
    """Images of a step of a stage that trains: its batch, or more if a GPU had no micro-batch of it."""
    return max(experiment.train_of(kind).batch_size, experiment.train.micro_batch * cluster.gpus)


def show(experiment: Experiment, figures: Facts, images: float, gpus: int) -> None:
    """Prints the plan: a row for each stage, the sum, and what was assumed. gpus 0: the measured machine."""
    cores = 0 if gpus else int(_number(figures, "cores"))
    cluster = Cluster(gpus) if gpus else Cluster(1, 1, cores, start_s=5.0, here=True)
    where = f"{gpus} GPUs" if gpus else f"the measured machine, {cores} cores"
    columns = ("stage", "hours", "most of it", "stored, GB", "network, GB", "requests of the stream")
    table = Table(*columns, title=f"{images:,.0f} images on {where}")
    total_s = 0.0
    for stage in stages(experiment, figures, cluster, images):
        seconds = stage.seconds(images, cluster)
        stage_s, most = sum(seconds.values()), max(seconds, key=lambda key: seconds[key])
        total_s += stage_s
        moved = (f"{images * each / 1e9:,.1f}" for each in (stage.stored_bytes, stage.network_bytes))
        share = f"{most} {seconds[most] / stage_s:.0%}"
        asked = f"{stage.requests:,.0f}" if stage.requests else ""
        table.add_row(stage.name, f"{stage_s / 3600:.2f}", share, *moved, asked)
    results.print(table)
    batch, every = global_batch(experiment, "vae", cluster), experiment.train.eval_every_images
    rate = "as measured" if figures.get("gpu") else f"of {cluster.gpu_gflops:,.0f} GFLOP/s"
    machines = (
        f"{cluster.gpus_per_node} GPUs a node, {rate}, {cluster.cores_per_gpu} cores a GPU as fast as those "
        f"measured, {cluster.node_gbit_per_s:g} Gbit/s, storage as fast as that; "
    )
    results.print(
        f"{total_s / 3600:.1f} hours in all. Assumed: prior and VAE see every image once, in a global batch "
        f"of {batch:,} (train.batch_size is {experiment.train.batch_size}); a validation and a checkpoint "
        f"every {every:,} images or less often, {cluster.report_s:g} s each; {cluster.start_s:g} s for the "
        "workers of a stage to start; clustering on one machine, in proportion to the patches; "
        f"{'' if cluster.here else machines}nothing overlaps; samples and scores are not planned."
    )


def read(path: Path) -> Facts:
    """The figures that `npdraw bench --out` wrote. Raises UserError if there are none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--from {path} does not hold figures; npdraw bench --out does: {error}") from None


def _number(figures: Facts, name: str) -> float:
    value = figures.get(name)
    if not isinstance(value, int | float):
        raise UserError(f"the figures lack {name}; write them again with npdraw bench --out")
    return value
