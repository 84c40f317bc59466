"""What the stages `prior` and `vae` share: data to the workers, the run, its summary.

Training data up to `data.cache_mb` is read once into the memory of each worker; more is streamed.
Shapes: N images, C channels, H x W pixels, T steps.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray
from pyarrow.fs import FileSystem
from ray.train import CheckpointConfig, UserCallback
from torch import Tensor

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.data.parses import to_columns
from npdraw_dist.data.stream import COLUMNS, ShardFile, list_shards, read_table, stream
from npdraw_dist.pipeline.progress import console, stage_progress
from npdraw_dist.pipeline.store import Store
from npdraw_dist.training import checkpoint
from npdraw_dist.training.context import Context, RayContext
from npdraw_dist.training.feed import Feed, MemoryFeed, StreamFeed
from npdraw_dist.training.journal import read_journal
from npdraw_dist.training.launch import fit, quiet_logs
from npdraw_dist.training.loop import Budget, train
from npdraw_dist.training.resources import Workers, has_compiler, plan_workers

Arrays = dict[str, NDArray[Any]]

# By what a stage's checkpoints are compared.
CRITERIA = {
    "prior": checkpoint.Criterion("valid/nll", "min"),
    "vae": checkpoint.Criterion("valid/elbo", "max"),
}
SHUFFLE_ROWS = 4096  # least rows of a stream's shuffle window


def load_parses(store: Store, split: str) -> Arrays:
    """The columns image, whether, where and what of a split, in the order of the ids."""
    files = list_shards(store.filesystem, store.path("parses", split))
    rows = sum(file.rows for file in files)
    table = read_table(files, store.filesystem, 0, rows, ["id", *COLUMNS])
    return _arrays(table.take(pc.sort_indices(table["id"])))


def _arrays(table: pa.Table) -> Arrays:
    images, z = to_columns(table.combine_chunks())
    return {"image": images, **{name: getattr(z, name).numpy() for name in ("whether", "where", "what")}}


def load_head(store: Store, split: str, limit: int) -> Arrays:
    """`load_parses` of a split of at most `limit` rows; else its first `limit` rows in shard order."""
    files = list_shards(store.filesystem, store.path("parses", split))
    if sum(file.rows for file in files) <= limit:
        return load_parses(store, split)
    return _arrays(read_table(files, store.filesystem, 0, limit, COLUMNS))


def as_batch(arrays: Arrays) -> Batch:
    """(N, C, H, W) uint8 and z (N, T) of loaded columns."""
    images, z = to_columns(arrays)
    return Batch(torch.tensor(images), z)


def run_training(
    experiment: Experiment,
    store: Store,
    stage: str,
    make_objective: Callable[[dict[str, Any]], Any],
    extra: dict[str, Any],
    callbacks: Sequence[UserCallback] = (),
) -> tuple[dict[str, Any], str, dict[str, Tensor]]:
    """Trains a stage as a Ray Train run; returns its summary, and name and tensors of a checkpoint.

    The checkpoint is the last one or the best (`train.select`); `selected_at` is at how many images.

    `make_objective(config)` builds the module on each worker; `extra` travels in its config;
    `callbacks` see each report.
    Raises UserError where the loss turned non-finite.
    """
    images = {"prior": experiment.prior.images, "vae": experiment.vae.images}[stage]
    settings = experiment.train
    files = list_shards(store.filesystem, store.path("parses", "train"))
    streamed = _is_streamed(experiment, stage, sum(file.rows for file in files))
    # Validation reads no further than this.
    head = settings.eval_batches * settings.micro_batch
    config = {
        **extra,
        "experiment": experiment.model_dump(mode="json"),
        "images": images,
        "make_objective": make_objective,
        "valid": ray.put(load_head(store, "valid", head)),
        "train": None if streamed else ray.put(load_parses(store, "train")),
        "files": files,
        "filesystem": store.filesystem,
        "folder": store.path(stage),
    }
    if settings.compile and not has_compiler():
        raise UserError("train.compile needs a C++ compiler: install g++, or name one in CXX")
    workers = plan_workers(experiment.scale, streamed)
    kept = CheckpointConfig(num_to_keep=settings.keep_checkpoints)
    if settings.select == "best":  # Ray Train keeps the last one beside them
        kept.checkpoint_score_attribute = CRITERIA[stage].name
        kept.checkpoint_score_order = CRITERIA[stage].order
    console.print(f"{stage}: {workers}, {_shares(experiment, workers)}")
    started = time.perf_counter()

    def say(line: str) -> None:
        console.print(f"{stage}: {line}")

    with stage_progress(stage, images) as show:
        said = fit(_worker, config, workers, experiment.scale, kept, store.root, stage, show, say, callbacks)
    summary = dict(said or {})
    if "stopped_at_step" in summary:
        raise UserError(
            f"the loss of stage {stage} turned non-finite at step {summary['stopped_at_step']}; the last "
            f"good checkpoint, if there is one, is kept in {store.path(stage)} (lower the learning rate)"
        )
    summary["seconds"] = round(time.perf_counter() - started, 2)
    (tensors, progress), name = _handed_on(store, stage, settings.select)
    return summary | {"selected_at": progress["record"]["images_seen"]}, name, tensors


def _handed_on(store: Store, stage: str, select: str) -> tuple[tuple[dict[str, Tensor], dict[str, Any]], str]:
    """Tensors and progress of the checkpoint that a stage hands on, and its name."""
    run = store.path(stage)
    if select == "best":
        paths = checkpoint.ranked(store.filesystem, run, CRITERIA[stage])
    else:
        paths = checkpoint.listed(store.filesystem, run)
    found = checkpoint.first_whole(store.filesystem, run, paths, checkpoint.read)
    assert found is not None, "a run ends in a checkpoint"
    return found[0], found[1].rpartition("/")[2]


def selected_record(store: Store, stage: str) -> dict[str, Any]:
    """The record in metrics.jsonl of the weights that a finished stage handed on."""
    records = read_journal(store.filesystem, store.path(stage))
    seen = store.read_json(stage, "manifest.json")["selected_at"]
    return next(record for record in reversed(records) if record["images_seen"] == seen)


def _shares(experiment: Experiment, workers: Workers) -> str:
    """How the global batch, which is the same for any number of workers, is dealt to them."""
    batch, micro = experiment.train.batch_size, experiment.train.micro_batch
    chunks = batch // micro
    each = {-(-chunks // count) for count in (workers.least, workers.most)}
    most = " to ".join(str(number) for number in sorted(each))
    return f"a global batch of {batch} in {chunks} micro-batches of {micro}, at most {most} a worker"


def _is_streamed(experiment: Experiment, stage: str, rows: int) -> bool:
    """Whether `rows` training images exceed data.cache_mb; says so."""
    steps = experiment.steps if "bank" in experiment.stage_names else 0
    image = math.prod(experiment.data.shape) + 3 * steps * 8  # bytes of a row of `Batch`
    size = rows * image / 2**20
    # A stream deals each rank a share of an epoch; below a batch there is nothing to share out.
    streamed = size > experiment.data.cache_mb and rows >= experiment.train.batch_size
    console.print(
        f"{stage}: {rows:,} training images of {size:,.1f} MB are "
        f"{'streamed' if streamed else 'read into memory'} (data.cache_mb {experiment.data.cache_mb:g})"
    )
    return streamed


def _feed(config: dict[str, Any], experiment: Experiment, context: Context) -> Feed:
    """The training data of one rank."""
    ranks = (context.rank, context.world_size)
    if config["train"] is not None:
        return memory_feed(as_batch(ray.get(config["train"])), experiment, *ranks)
    quiet_logs()
    return stream_feed(config["files"], config["filesystem"], experiment, *ranks)


def memory_feed(data: Batch, experiment: Experiment, rank: int = 0, world_size: int = 1) -> MemoryFeed:
    """`data` for one rank."""
    settings = experiment.train
    sizes = (settings.batch_size, settings.micro_batch)
    return MemoryFeed(data, *sizes, experiment.seed, rank, world_size)


def stream_feed(
    files: Sequence[ShardFile],
    filesystem: FileSystem,
    experiment: Experiment,
    rank: int = 0,
    world_size: int = 1,
) -> StreamFeed:
    """The rows of `files` for one rank, read by Ray Data as they are needed."""
    settings = experiment.train
    sizes = (settings.batch_size, settings.micro_batch, max(2 * settings.batch_size, SHUFFLE_ROWS))

    def read(order: Sequence[int], start: int, stop: int) -> Iterator[Batch]:
        return stream([files[index] for index in order], filesystem, start, stop)

    return StreamFeed([file.rows for file in files], read, *sizes, experiment.seed, rank, world_size)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One rank of a training run."""
    torch.set_num_threads(config["threads"])
    experiment = Experiment.model_validate(config["experiment"])
    context = RayContext(config["filesystem"], config["folder"], config["board"])
    torch.manual_seed(experiment.seed)  # the initial weights, the same on every rank
    objective = config["make_objective"](config)
    valid = as_batch(ray.get(config["valid"]))
    settings = experiment.train
    feed = _feed(config, experiment, context)
    last = 0.0

    def progress(images_seen: int, rate: float) -> None:
        nonlocal last
        if context.rank == 0 and time.monotonic() - last > 0.5:
            last = time.monotonic()
            config["board"].write.remote(images_seen, rate)

    budget = Budget(config["images"], settings.eval_every_images)
    return train(objective, feed, valid, settings, budget, experiment.seed, context, progress)
