"""Section `machine`, which states hardware and software, and measures matrix products and memory."""

import math
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path

import psutil
import torch

from npdraw_dist.bench.workload import Facts, Workload, median_seconds
from npdraw_dist.system.process import cpu_count, local_device

PACKAGES = ("torch", "numpy", "scikit-learn", "ray")
SIDE, GPU_SIDE = 2048, 8192  # sides of the matrices; larger on a GPU, which small products do not keep busy


def run(work: Workload) -> Facts:
    """Returns hardware, versions, commit, date (UTC), `sgemm_gflops` and, on a GPU, `bf16_gflops`."""
    gpu, repeats = local_device().type == "cuda", 3 if work.quick else 9
    types = {"sgemm": torch.float32, **({"bf16": torch.bfloat16} if gpu else {})}
    products = {name: matrix_product(dtype) for name, dtype in types.items()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": processor(),
        "cores": cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in PACKAGES},
        # FAISS is published as packages of several names.
        "faiss": next((version(d) for d in packages_distributions().get("faiss", ())), None),
        "source": work.experiment.data.source,
        "pixels": math.prod(work.experiment.data.shape),
        "quick": int(work.quick),
        **{
            f"{name}_gflops": flops / median_seconds([product], repeats)[0] / 1e9
            for name, (product, flops) in products.items()
        },
    }


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A product of square matrices into an existing buffer, without TF32 as in training; its operations."""
    side = SIDE if local_device().type == "cpu" else GPU_SIDE
    a, b = torch.rand(2, side, side, device=local_device()).to(dtype)
    product = partial(torch.mm, a, b, out=torch.empty_like(a))
    product()
    return product, 2 * side**3


def memory_mb() -> float:
    """The memory of all tensors on the GPU, in MiB; without a GPU, the memory of this process."""
    gpu = torch.cuda.is_available()
    return (torch.cuda.memory_allocated() if gpu else psutil.Process().memory_info().rss) / (1 << 20)


def peak_mb() -> float:
    """The largest `memory_mb` so far."""
    return torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else peak_rss_mb()


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MiB; `memory_mb` if /proc cannot be read."""
    with suppress(OSError):  # not ru_maxrss, which is inherited from the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / (1 << 10)
    return memory_mb()


def _commit() -> str | None:
    """The commit of the source tree, with "+" if files differ from it; None outside a source tree."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*"]
    with suppress(OSError):
        return subprocess.run([*git, "--dirty=+"], capture_output=True, text=True).stdout.strip() or None
    return None


def processor() -> str:
    """The processor's name as Linux reports it, or else as Python does."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
