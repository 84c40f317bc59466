"""Section `machine`: what the figures were measured on; and the memory of this process."""

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from npdraw_dist.bench.workload import Facts, Workload, median_seconds
from npdraw_dist.core.process import is_there

PACKAGES = ("torch", "numpy", "scikit-learn", "ray")
SIDE, GPU_SIDE = 2048, 8192  # sides of the matrices: a GPU ends small ones before the next launch


def run(work: Workload) -> Facts:
    """Hardware, versions, commit, date (UTC); `sgemm_gflops`, and `bf16_gflops` if there is a GPU."""
    gpu, repeats = device().type == "cuda", 3 if work.quick else 9
    facts: Facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in PACKAGES},
        "faiss": _faiss(),
        "source": work.experiment.data.source,
        "bench_images": len(work.images),
        "pixels": work.images[0].size,
        "quick": int(work.quick),
        "sgemm_gflops": _gflops(torch.float32, repeats),
    }
    return facts | ({"bf16_gflops": _gflops(torch.bfloat16, repeats)} if gpu else {})


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class MatrixProduct:
    """A square matrix product into an existing buffer; TF32 is off unless the user turned it on."""

    def __init__(self, dtype: torch.dtype) -> None:
        side = SIDE if device().type == "cpu" else GPU_SIDE
        self.flops = 2 * side**3
        self.a, self.b = torch.rand(2, side, side, device=device()).to(dtype)
        self.out = torch.empty_like(self.a)
        self()

    def __call__(self) -> None:
        torch.mm(self.a, self.b, out=self.out)


def _gflops(dtype: torch.dtype, repeats: int) -> float:
    """10^9 operations a second of a matrix product."""
    product = MatrixProduct(dtype)
    (seconds,) = median_seconds([product], repeats)
    return product.flops / seconds / 1e9


def memory_mb() -> float:
    """MiB of tensors on the GPU if there is one, else MiB of this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / (1 << 20)
    return _resident_mb("VmRSS")


def peak_mb() -> float:
    """The largest `memory_mb` so far."""
    return torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else peak_rss_mb()


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return _resident_mb("VmHWM")


def _resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak) in MiB; the peak for both if there is no /proc."""
    try:
        # Not ru_maxrss: a new process inherits it from the one that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith(field)).split()[1]) / (1 << 10)
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


def _commit() -> str | None:
    """The commit of the source tree, with "+" if it has changes; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _faiss() -> str | None:
    """The version of FAISS, whose wheels have several names; None where it is not installed."""
    if not is_there("faiss"):
        return None
    import faiss

    return str(faiss.__version__)
