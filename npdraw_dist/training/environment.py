"""Every environment variable that the project sets, for itself and its workers, with the reason."""

import json
import os
import sys

# glibc returns large blocks to the kernel at once, and the next step faults them in again. That costs more
# than the arithmetic: a VAE step took 24-37 s with the defaults and 10 s with these settings.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",  # bytes; no mmap for each tensor
    "MALLOC_TRIM_THRESHOLD_": "17179869184",  # bytes; keep freed memory
    "MALLOC_TOP_PAD_": "67108864",  # bytes; grow in steps of 64 MiB
    "MALLOC_ARENA_MAX": "1",  # Ray Train trains in a thread, and a thread's own arena is capped at 64 MiB
}

# Threads spin while they wait for each other at the end of an operation. GNU OpenMP's default, 300,000 turns,
# keeps the core from another program's. The digits' prior on 2 cores of an Intel Xeon, images/s: alone 1,049
# with the default, 1,041 with these, 452 with none; beside a program of two threads below 80, and 213.
SPIN = {"GOMP_SPINCOUNT": "10000"}

COMPUTE = {**ALLOCATOR, **SPIN}  # for every process that trains

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # "0": Ray Train does not look for drained nodes

# A lost worker is noticed quickly.
RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # s; how often the controller checks the workers
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # s; and looks for nodes that the cloud takes back
    # s; workers that are not placed by then are asked for anew, and `Waiting` says what they lack
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}

# Set before a local Ray starts.
LOCAL_RAY = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray Data's actors cause a known warning of Ray's core
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

OWN_RAY = "NPDRAW_OWN_RAY"  # set in a Ray that a command started: no node joins it

# Only for a Ray that runs on this machine alone.
ONE_MACHINE = {
    OWN_RAY: "1",
    **COMPUTE,  # workers inherit this process's environment
    PREEMPTION_WATCHER: "0",  # nobody drains this machine; one process less to start
}

# Set before a local Ray of many trials: Ray warns about a multiple of this number of processes.
MANY_PROCESSES = {"RAY_worker_maximum_startup_concurrency": "8"}


THREADS = "OMP_NUM_THREADS"


def _kept() -> dict[str, str]:
    """The variables of this process, without the single thread that Ray gives to the command of a job."""
    job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    asked = job is None or THREADS in (json.loads(job).get("runtime_env") or {}).get("env_vars", {})
    return {key: value for key, value in os.environ.items() if asked or (key, value) != (THREADS, "1")}


def restart_with_environment() -> None:
    """Starts this command again with COMPUTE, which libraries read at their start; a command's first call."""
    if {"-h", "--help", "--help-all", "--version"} & set(sys.argv):
        return  # nothing is computed
    kept = _kept()
    held = {*kept, *(SPIN if "OMP_WAIT_POLICY" in kept else ())}  # SPIN would win over that
    missing = {key: value for key, value in COMPUTE.items() if key not in held}
    if (missing or len(kept) < len(os.environ)) and sys.platform == "linux":
        os.execve(sys.executable, sys.orig_argv, {**kept, **missing})
