"""The environment variables of all that computes, with the reason. (`distributed/start.py` has Ray's.)"""

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
