"""Every environment variable that the project sets for Ray, with the reason."""

from npdraw_dist.core.process import COMPUTE

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
