"""Section `machine`: what the figures were measured on."""

import os
import platform
import resource
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from npdraw_dist.stages.bench.workload import Facts, Workload, seconds_of

PACKAGES = ("torch", "numpy", "scikit-learn", "ray")
SIDE = 2048


def run(work: Workload) -> Facts:
    """Hardware, versions, commit, date (UTC), and `sgemm_gflops`: float32 matrix products of SIDE."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name.replace("-", "_"): version(name) for name in PACKAGES},
        "faiss": _faiss(),
        "source": work.experiment.data.source,
        "bench_images": len(work.images),
        "quick": int(work.quick),
        "sgemm_gflops": sgemm_gflops(device, repeats=3 if work.quick else 9),
    }


def sgemm_gflops(device: torch.device, repeats: int) -> float:
    """10^9 float32 operations a second of a square matrix product; TF32 is off."""
    a, b = torch.rand(2, SIDE, SIDE, device=device)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()

    product()
    (seconds,) = seconds_of([product], repeats)
    return 2 * SIDE**3 / seconds / 1e9


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


def _commit() -> str | None:
    """The commit of the source tree, with "+" where it has changes; None outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _faiss() -> str:
    import faiss  # its wheels have several names, so that the metadata cannot be asked

    return str(faiss.__version__)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
