"""Properties of this process: its output level, device, memory allocator, threads and optional packages."""

import ctypes
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING

from npdraw_dist.system.errors import UserError

if TYPE_CHECKING:
    import torch

# FLAGS maps each flag to its help; LEVELS maps it to the level of the logger `npdraw_dist`.
FLAGS = {
    "--quiet": "print results, warnings and errors only",
    "--verbose": "also print Ray's log and the traceback of an error",
}
LEVELS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG}

# By default glibc returns the memory of large tensors to the kernel, and the next step maps it again page by
# page. This costs more than the arithmetic: a VAE step took 24-37 s by default and 10 s with these values.
# Environment variable of a new process -> number of the parameter in malloc.h, and its value.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # large tensors are allocated in the heap, not in mappings of their own
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # freed memory is not returned to the kernel
    "MALLOC_TOP_PAD_": (-2, 64 << 20),  # extra bytes that the heap requests when it grows
    "MALLOC_ARENA_MAX": (-8, 1),  # Ray Train trains in a thread, and a thread's own arena is capped at 64 MiB
}

# Threads spin while they wait for each other at the end of an operation. GNU OpenMP's default, 300,000 turns,
# blocks the core for other programs. On 2 cores of an Intel Xeon, the digits' prior trained alone at 1,049
# images/s with the default, 1,041 with 10,000 turns and 452 with 0. Beside another program with two threads,
# it trained at less than 80 images/s with the default and at 213 with 10,000 turns.
SPIN = {"GOMP_SPINCOUNT": "10000"}

# Environment of every new process that trains.
COMPUTE = {**{name: str(value) for name, (_, value) in ALLOCATOR.items()}, **SPIN}
THREADS = "OMP_NUM_THREADS"

_logger = logging.getLogger("npdraw_dist")


def set_verbosity(words: Sequence[str]) -> None:
    _logger.setLevel(next((LEVELS[word] for word in words if word in LEVELS), logging.INFO))


def is_quiet() -> bool:
    return _logger.level > logging.INFO


def is_verbose() -> bool:
    return _logger.level == logging.DEBUG


def cpu_count() -> int:
    """The number of CPUs that this process may use; `srun` or `taskset` can limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_device(use_gpu: bool | None = None, flag: str = "scale.use_gpu") -> "torch.device":
    """Returns this machine's GPU, after turning off TF32, or its CPU, after calling `keep_memory`.

    use_gpu: None takes a GPU if there is one. Raises UserError if use_gpu is true and there is no GPU.
    """
    import torch  # the import takes seconds

    gpu = torch.cuda.is_available()
    if use_gpu and not gpu:
        raise UserError(f"{flag} is true, but this machine has no GPU (--{flag} false takes the CPU)")
    device = torch.device("cuda" if gpu and use_gpu is not False else "cpu")
    refuse_tf32(device)
    if device.type == "cpu":
        keep_memory()
    return device


def keep_memory() -> None:
    """Makes glibc keep freed memory in this process (ALLOCATOR).

    Otherwise the system clears every page of the next tensor, which takes up to a quarter of the time of an
    evaluation (`docs/results`).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has this function
    if mallopt is not None:
        for number, value in ALLOCATOR.values():
            mallopt(number, value)


def prepare_to_compute() -> None:
    """Sets up memory and threads for the libraries of a command, which calls it before it imports torch."""
    keep_memory()
    if "OMP_WAIT_POLICY" not in os.environ:  # a user's choice, which the variables of SPIN would override
        for name, value in SPIN.items():
            os.environ.setdefault(name, value)
    # Without reserved CPUs, as in a job's command, Ray sets OMP_NUM_THREADS=1. Undo it unless a user set it.
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "null"))
    given = job is None or THREADS in (job.get("runtime_env") or {}).get("env_vars", {})
    if not given and os.environ.get(THREADS) == "1":
        del os.environ[THREADS]


def refuse_tf32(device: "torch.device") -> None:
    """Turns off TF32, which rounds the factors of float32 products to 10 bits; cuDNN uses it by default."""
    if device.type == "cuda":
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def background_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A thread pool for work beside a training step. In each of its threads, torch uses only that thread.

    Otherwise OpenMP starts a team of threads for each thread of the pool. With more threads than cores,
    libgomp stops all spinning, and a step of many small operations takes a fifth longer (`docs/results`).
    """
    return ThreadPoolExecutor(count, name, initializer=_compute_alone)


def _compute_alone() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # must be first, since a thread's first call sets its count
    threadpool_limits(1, "openmp")  # torch.set_num_threads would also change later threads


def is_there(module: str) -> bool:
    """Whether `module` can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a missing parent package, or a module without a spec
        return False


def require_extra(what: str, extra: str, *modules: str) -> None:
    """Raises UserError if one of `modules`, which `what` needs and `extra` installs, is missing."""
    if not all(map(is_there, modules)):
        raise UserError(f"{what} needs npdraw_dist[{extra}]: pip install 'npdraw_dist[{extra}]'")
