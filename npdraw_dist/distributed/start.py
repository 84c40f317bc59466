"""Starts Ray or joins a cluster. Ray itself is imported late, since the import takes seconds and a command
that works in one process never needs it."""

import logging
import os
import socket
import sys
from typing import Any

from npdraw_dist.config.schema import ScaleConfig
from npdraw_dist.system import process
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import COMPUTE

OBJECT_STORE_MB = 512  # size of Ray's object store if Ray runs on this machine alone
CONNECT_S = 10
TRIED = ("2.59", "2.60")  # the minor versions of Ray with which the tests pass

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # "0": Ray Train does not look for drained nodes

# Settings that make Ray Train notice a lost worker quickly.
RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # s; how often the controller checks the workers
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # s; how often the controller looks for drained nodes
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # s; after it, workers without a node are requested again
}

# Set before Ray starts, and before this process joins a cluster.
LOCAL_RAY = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # hides a known warning about Ray Data's actors
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

OWN_RAY = "NPDRAW_OWN_RAY"  # set in a Ray that a command started, which no node can join

# Set for a Ray that runs on this machine alone.
ONE_MACHINE = {
    OWN_RAY: "1",
    **COMPUTE,  # workers inherit this process's environment
    PREEMPTION_WATCHER: "0",  # this machine is never drained; one process less to start
}

# Set before a local Ray starts for many trials: Ray warns if its processes exceed a multiple of this number.
MANY_PROCESSES = {"RAY_worker_maximum_startup_concurrency": "8"}


def ray_runs() -> bool:
    """Whether this process has started or joined Ray. Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def is_local() -> bool:
    """Whether this process will start a Ray of its own, since none runs and RAY_ADDRESS is not set."""
    return not os.environ.get("RAY_ADDRESS") and not ray_runs()


def can_grow() -> bool:
    """Whether nodes can join Ray. They cannot join a Ray that a command started on its own machine.

    RAY_ADDRESS is set in the driver of a job, but not in its actors, such as a trial of a sweep.
    """
    return bool(os.environ.get("RAY_ADDRESS")) or (ray_runs() and OWN_RAY not in os.environ)


def placed(scale: ScaleConfig) -> ScaleConfig:
    """Resolves a range `0:N` of workers: to `1:N` on a cluster or if a worker's size is set, else to 0.

    Without Ray, one worker becomes this process, with a line that says so. Raises UserError if more is asked.
    """
    found = scale.placed(cluster=not is_local())
    if found.in_process or process.is_there("ray"):
        return found
    if not is_local() or found.least_workers > 1 or found.sized:
        require_ray(f"scale.num_workers {found.num_workers}")
    need = "several workers need npdraw_dist[cluster]"
    print(f"Ray is not installed, so this process does all the work ({need})", file=sys.stderr)
    return found.model_copy(update={"num_workers": 0})


def require_ray(what: str) -> None:
    """Raises UserError if Ray, which `what` needs, is not installed. Does not import it."""
    process.require_extra(what, "cluster", "ray")


def local_cpus(scale: ScaleConfig) -> int:
    """The number of CPUs for a Ray on this machine alone: all of them, and at least one for each worker."""
    return max(process.cpu_count(), scale.least_workers)


def start_ray(scale: ScaleConfig, object_store_mb: int = OBJECT_STORE_MB) -> None:
    """Joins the cluster at RAY_ADDRESS, which a job sets; else starts Ray. Raises UserError if that fails."""
    require_ray("this command")
    import ray

    if ray.is_initialized():
        return
    if (line := untried(ray.__version__)) is not None:
        print(line, file=sys.stderr)
    for name, value in {**LOCAL_RAY, **RAY}.items():
        os.environ.setdefault(name, value)
    verbose = process.is_verbose()
    log: dict[str, Any] = {
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "log_to_driver": verbose,
    }
    if address := os.environ.get("RAY_ADDRESS"):
        _require_answer(address)
        try:
            ray.init(**log)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from None
    else:
        os.environ.update(ONE_MACHINE)
        try:
            ray.init(
                "local",  # ignores a cluster of `ray start`; RAY_ADDRESS=auto would join it
                include_dashboard=False,
                num_cpus=local_cpus(scale),
                object_store_memory=object_store_mb << 20,
                **log,
            )
        except ValueError as error:  # the object store exceeds the memory, or there is too little memory
            raise UserError(f"Ray cannot start on this machine: {error}") from None
    quiet_logs()


def untried(version: str) -> str | None:
    """A line about a version of Ray that was never tried; None if it was."""
    if version.rpartition(".")[0] in TRIED:
        return None
    return f"Ray {version} was not tried with this package, only {' and '.join(TRIED)}; it should work"


def _require_answer(address: str) -> None:
    """Raises UserError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", "local" and other special addresses of Ray
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(f"no Ray cluster answers at RAY_ADDRESS {address}: {error}")


def quiet_logs() -> None:
    """Reduces Ray's log to errors, except with `--verbose`."""
    import ray.data

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if process.is_verbose() else logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
