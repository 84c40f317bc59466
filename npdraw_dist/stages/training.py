"""What the stages `prior` and `vae` share: data to the workers, the run, its summary."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.data.parses import to_columns
from npdraw_dist.dist.context import RayContext
from npdraw_dist.dist.feed import MemoryFeed
from npdraw_dist.dist.launch import fit
from npdraw_dist.dist.loop import Budget, train
from npdraw_dist.stages.progress import stage_progress
from npdraw_dist.stages.store import Store

Arrays = dict[str, NDArray[Any]]


def load_parses(store: Store, split: str) -> Arrays:
    """The columns image, whether, where and what of a split, in the order of the ids, by Ray Data."""
    dataset = ray.data.read_parquet(
        store.path("parses", split),
        filesystem=store.filesystem,
        columns=["id", "image", "whether", "where", "what"],
    )
    blocks = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    order = np.argsort(np.concatenate([block["id"] for block in blocks]).astype(str), kind="stable")
    columns: list[tuple[Any, Any]] = [to_columns(block) for block in blocks]
    return {
        "image": np.concatenate([images for images, _ in columns])[order],
        **{
            name: np.concatenate([getattr(z, name).numpy() for _, z in columns])[order]
            for name in ("whether", "where", "what")
        },
    }


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
) -> tuple[dict[str, Any], Any]:
    """Trains a stage as a Ray Train run; returns its summary and last checkpoint.

    `make_objective(config)` builds the module on each worker; `extra` travels in its config.
    Raises UserError where the loss turned non-finite.
    """
    images = {"prior": experiment.prior.images, "vae": experiment.vae.images}[stage]
    data = {split: ray.put(load_parses(store, split)) for split in ("train", "valid")}
    config = {
        **extra,
        "experiment": experiment.model_dump(mode="json"),
        "images": images,
        "make_objective": make_objective,
        "data": data,
    }
    started = time.perf_counter()
    with stage_progress(stage, images) as show:
        result = fit(
            _worker, config, experiment.scale, experiment.train, store.root, store.filesystem, stage, show
        )
    summary = dict(result.return_value or {})
    if "stopped_at_step" in summary:
        raise UserError(
            f"the loss of stage {stage} turned non-finite at step {summary['stopped_at_step']}; the last "
            f"good checkpoint, if there is one, is kept in {store.path(stage)} (lower the learning rate)"
        )
    summary["seconds"] = round(time.perf_counter() - started, 2)
    return summary, result.checkpoint


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One rank of a training run."""
    torch.set_num_threads(config["threads"])
    experiment = Experiment.model_validate(config["experiment"])
    context = RayContext()
    torch.manual_seed(experiment.seed)  # the initial weights, the same on every rank
    objective = config["make_objective"](config)
    train_data, valid = (as_batch(ray.get(config["data"][split])) for split in ("train", "valid"))
    settings = experiment.train
    feed = MemoryFeed(
        train_data,
        settings.batch_size,
        settings.micro_batch,
        experiment.seed,
        context.rank,
        context.world_size,
    )
    last = 0.0

    def progress(images_seen: int, rate: float) -> None:
        nonlocal last
        if context.rank == 0 and time.monotonic() - last > 0.5:
            last = time.monotonic()
            config["board"].write.remote(images_seen, rate)

    budget = Budget(config["images"], settings.eval_every_images)
    return train(objective, feed, valid, settings, budget, experiment.seed, context, progress)
