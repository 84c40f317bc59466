"""Starting Ray, and one Ray Train run: the few dozen lines between the loop and a cluster."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from npdraw_dist.config.schema import ScaleConfig, TrainConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.dist.environment import ALLOCATOR, LOCAL_RAY, RAY
from npdraw_dist.dist.journal import JournalCallback


def start_ray(scale: ScaleConfig) -> None:
    """Joins the cluster that RAY_ADDRESS or the job names, else starts Ray on this machine."""
    if ray.is_initialized():
        return
    for name, value in {**LOCAL_RAY, **RAY}.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at RAY_ADDRESS {os.environ['RAY_ADDRESS']}: {error}"
            ) from None
    else:
        os.environ.update(ALLOCATOR)  # the workers of a local Ray inherit this process's environment
        # Every training worker needs a slot, and so does reading, also where there are fewer cores.
        ray.init(
            include_dashboard=False,
            num_cpus=max(os.cpu_count() or 1, scale.num_workers + 1),
            object_store_memory=scale.object_store_mb << 20,
            **quiet,
        )
    quiet_logs()


def quiet_logs() -> None:
    """Ray's own chatter down to warnings that a person can act on."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@dataclass(frozen=True)
class Workers:
    """What each training worker gets."""

    count: int
    cpus: int
    gpu: bool


def plan_workers(scale: ScaleConfig, reading: bool = False) -> Workers:
    """The workers that the cluster can give; raises UserError that names what is missing.

    reading: leave a CPU to the read tasks of a stream, which would starve without.
    """
    have = ray.cluster_resources()
    cpus, gpus = int(have.get("CPU", 0)) - reading, int(have.get("GPU", 0))
    count = scale.num_workers
    gpu = gpus >= count if scale.use_gpu is None else scale.use_gpu
    if gpu and gpus < count:
        raise UserError(
            f"{count} workers need {count} GPUs; the cluster has {gpus} (--scale.use_gpu false trains on CPU)"
        )
    each = scale.cpus_per_worker or max(cpus // count, 1)
    if each * count > cpus:
        beside = " beside the one that reads the stream" if reading else ""
        raise UserError(
            f"{count} workers of {each} CPUs need {each * count}; the cluster has {cpus}{beside} "
            "(lower --scale.num_workers)"
        )
    return Workers(count, each, gpu)


class _Board:
    """Holds the latest progress between a worker that writes and the driver that shows it."""

    def __init__(self) -> None:
        self.state: tuple[int, float] = (0, 0.0)

    def write(self, images_seen: int, rate: float) -> None:
        self.state = (images_seen, rate)

    def read(self) -> tuple[int, float]:
        return self.state


# Called with images seen and images/s.
Show = Callable[[int, float], None]


def fit(
    worker: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    scale: ScaleConfig,
    train: TrainConfig,
    storage: str,
    filesystem: pyarrow.fs.FileSystem,
    name: str,
    show: Show,
    reading: bool = False,
) -> ray.train.Result:
    """Runs `worker(config)` on all workers as the Ray Train run <storage>/<name>; resumes it if there.

    `config["board"]` takes progress from rank 0; `show` is called with it here. reading: the workers
    stream by Ray Data, as in `plan_workers`.
    """
    workers = plan_workers(scale, reading)
    board = ray.remote(num_cpus=0)(_Board).remote()
    resources: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        worker,
        train_loop_config={**config, "board": board, "threads": workers.cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(timeout_s=scale.timeout_s),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.keep_checkpoints),
            callbacks=[JournalCallback(filesystem, f"{storage}/{name}")],
            worker_runtime_env={"env_vars": ALLOCATOR},
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, show, stop), daemon=True)
    watcher.start()
    try:
        return trainer.fit()
    finally:
        stop.set()
        watcher.join()
        ray.kill(board)


def _watch(board: Any, show: Show, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        try:
            images_seen, rate = ray.get(board.read.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            continue  # progress is for the eye; training goes on without it
        if images_seen:
            show(images_seen, rate)
