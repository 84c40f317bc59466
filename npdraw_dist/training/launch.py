"""Starting Ray, and one Ray Train run: the few dozen lines between the loop and a cluster."""

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train.torch import TorchTrainer

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import read_bytes
from npdraw_dist.training.checkpoint import listed
from npdraw_dist.training.environment import ALLOCATOR, LOCAL_RAY, ONE_MACHINE, RAY
from npdraw_dist.training.failures import cause_chains
from npdraw_dist.training.journal import JournalCallback
from npdraw_dist.training.network import ClusterTorchConfig
from npdraw_dist.training.resources import Workers

CONNECT_S = 10

# Where Ray Train keeps its list of checkpoints.
SNAPSHOT = "checkpoint_manager_snapshot.json"


def start_ray(scale: ScaleConfig, dashboard: bool = False) -> None:
    """Joins the cluster that RAY_ADDRESS or the job names, else starts Ray on this machine.

    dashboard: with Ray's dashboard, on the loopback. It serves the state API, without which Ray Train
    does not give back the workers of a run that was killed from outside.
    """
    if ray.is_initialized():
        return
    for name, value in {**LOCAL_RAY, **RAY}.items():
        os.environ.setdefault(name, value)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        _require_answer(address)
        try:
            ray.init(**quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS {address}: {error}") from None
    else:
        os.environ.update(ONE_MACHINE)
        # Every training worker needs a slot, and so does reading, also where there are fewer cores.
        ray.init(
            "local",  # not whatever cluster `ray start` left running here: that takes RAY_ADDRESS=auto
            include_dashboard=dashboard,
            num_cpus=max(os.cpu_count() or 1, scale.least_workers + 1),
            object_store_memory=scale.object_store_mb << 20,
            **quiet,
        )
    quiet_logs()


def _require_answer(address: str) -> None:
    """Raises UserError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", "local" and what else Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS {address}: {error}") from None


def quiet_logs() -> None:
    """Ray's own chatter down to warnings that a person can act on."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


class _Board:
    """Holds the latest progress and new lines between a worker that writes and the driver that shows."""

    def __init__(self) -> None:
        self.state: tuple[int, float] = (0, 0.0)
        self.lines: list[str] = []

    def write(self, images_seen: int, rate: float) -> None:
        self.state = (images_seen, rate)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def read(self) -> tuple[tuple[int, float], list[str]]:
        lines, self.lines = self.lines, []
        return self.state, lines


# Called with images seen and images/s; with a line that a worker has to say.
Show = Callable[[int, float], None]
Say = Callable[[str], None]


def fit(
    worker: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    workers: Workers,
    scale: ScaleConfig,
    kept: ray.train.CheckpointConfig,
    storage: str,
    name: str,
    show: Show,
    say: Say,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> Any:
    """Runs `worker(config)` on all workers as the Ray Train run <storage>/<name>; resumes it if there.

    Returns what rank 0 returned. `kept` says which checkpoints stay. Rank 0 writes progress and lines to
    `config["board"]`; `show` and `say` are called with them here. `callbacks` see each report in Ray
    Train's controller. Raises UserError where the storage failed.
    """
    filesystem: pyarrow.fs.FileSystem = config["filesystem"]
    mend(filesystem, f"{storage}/{name}")
    # Read by Ray Train's controller; the process group has its own limit below.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(scale.timeout_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(scale.timeout_s)
    board = ray.remote(num_cpus=0)(_Board).remote()
    resources: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        worker,
        train_loop_config={**config, "board": board, "threads": workers.cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.asked, use_gpu=workers.gpu, resources_per_worker=resources
        ),
        torch_config=ClusterTorchConfig(timeout_s=scale.timeout_s),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=kept,
            callbacks=[JournalCallback(filesystem, f"{storage}/{name}"), *callbacks],
            worker_runtime_env=_worker_environment(),
        ),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, show, say, stop), daemon=True)
    watcher.start()
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        if (failed := _storage_error(error)) is not None:
            raise UserError(
                f"stage {name} stopped, for its storage failed ({failed}); what was saved is whole, "
                "and the same command resumes"
            ) from None
        raise
    finally:
        stop.set()
        watcher.join()
        ray.kill(board)


def _worker_environment() -> dict[str, Any]:
    """ALLOCATOR for workers of a cluster; workers of a local Ray inherit it from this process."""
    return {"env_vars": ALLOCATOR} if os.environ.get("RAY_ADDRESS") else {}


def _watch(board: Any, show: Show, say: Say, stop: threading.Event) -> None:
    last = False
    while not last:
        last = stop.wait(0.5)  # once more after the end, for the last lines
        try:
            (images_seen, rate), lines = ray.get(board.read.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            continue  # progress is for the eye; training goes on without it
        for line in lines:
            say(line)
        if images_seen:
            show(images_seen, rate)


def mend(filesystem: pyarrow.fs.FileSystem, run: str) -> None:
    """Removes Ray Train's list of a run's checkpoints where Ray Train could not start with it.

    It is rewritten in place, so a full disk or a kill can leave half of it, and it can name a
    checkpoint that is gone. Training goes on without it: it looks into the checkpoints themselves.
    """
    path = f"{run}/{SNAPSHOT}"
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
        return
    try:
        state = json.loads(read_bytes(filesystem, path))
        names = [result["checkpoint_dir_name"] for result in state["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        names = None
    kept = {folder.rpartition("/")[2] for folder in listed(filesystem, run)}
    if names is None or state.get("ray_version") != ray.__version__ or not kept.issuperset(names):
        filesystem.delete_file(path)


def _storage_error(error: BaseException) -> OSError | None:
    """The OSError that made training fail, such as a full disk; None if there is another reason."""
    causes = (cause for chain in cause_chains(error) for cause in chain)
    return next((cause for cause in causes if isinstance(cause, OSError)), None)
