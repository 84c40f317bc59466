"""Every environment variable that the project sets for its workers and itself, with its reason."""

import os
import sys

# glibc gives large blocks back to the kernel at once and faults them in again at the next step,
# which costs more than the arithmetic: a VAE step took 24-37 s with the defaults, 10 s with these.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",  # bytes; no mmap a tensor
    "MALLOC_TRIM_THRESHOLD_": "17179869184",  # bytes; keep what was freed
    "MALLOC_TOP_PAD_": "67108864",  # bytes; grow in steps of 64 MiB
    "MALLOC_ARENA_MAX": "1",  # Ray Train trains in a thread, whose own arena is capped at 64 MiB
}

# Quiet, light, and quick to notice that a worker is gone.
RAY = {
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # s; how often the controller looks at the workers
}

# Set before a local Ray starts.
LOCAL_RAY = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray Data's own actors make its core print a known warning
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's own future default; silences its warning
}

# Only for a Ray of this machine.
ONE_MACHINE = {
    **ALLOCATOR,  # its workers inherit this process's environment
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains this machine; a process less to start
}

# Before a local Ray of many trials: Ray warns of processes by a multiple of this, else of the cores.
MANY_PROCESSES = {"RAY_worker_maximum_startup_concurrency": "8"}


def restart_with_allocator() -> None:
    """Starts this command again, in the same process, with ALLOCATOR, which glibc reads only at a start.

    What the user set is kept. Called first in a command, before anything slow is imported.
    """
    missing = {key: value for key, value in ALLOCATOR.items() if key not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})
