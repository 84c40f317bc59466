"""The parts of a training step that differ on a GPU: precision, and batches that are prepared in advance.

A CPU always computes in float32: without bfloat16 instructions, products in bfloat16 are a hundred times
slower.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

from npdraw_dist.config.training import Precision
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.parts import Batch
from npdraw_dist.training.feed import prefetched

BFLOAT16_SINCE = (8, 0)  # lowest compute capability with bfloat16 (Ampere)
AHEAD = 2  # steps whose batches are pinned in advance

MicroBatches = list[tuple[int, Batch]]  # (first row in the global batch, images)
Result = TypeVar("Result")


def usable(device: torch.device) -> torch.device:
    """`device`, or the CPU if torch finds no GPU, as in a build for CPUs or if Ray only simulates the GPU."""
    return device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `function`, and the seconds until a GPU, if there is one, has finished its work."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """The dtype of matrix products in a forward pass; None for float32.

    Raises UserError if bfloat16 is requested and the GPU does not support it.
    """
    if device.type != "cuda" or precision == "float32":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    # `torch.cuda.is_bf16_supported` is also true for a T4, which emulates bfloat16.
    if torch.version.hip is not None or (major, minor) >= BFLOAT16_SINCE:
        return torch.bfloat16
    if precision == "auto":
        return None
    raise UserError(
        f"train.precision is bfloat16, but {torch.cuda.get_device_name(device)} (compute capability "
        f"{major}.{minor}, not 8.0 or above) has no bfloat16; take auto or float32"
    )


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Computes matrix products in `dtype`. Weights, sums, norms, losses and `nn.blocks` stay in float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Inside the block, this thread rounds results below 1.2e-38 to 0, since they slow down a CPU."""
    before = float(torch.tensor(2e-38) / 2) == 0  # torch has no function that returns the setting
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def prepare_ahead(steps: Iterator[MicroBatches], device: torch.device) -> Iterator[MicroBatches]:
    """Yields `steps`. For a GPU, a thread pins their memory ahead, so that copies overlap with training."""
    if device.type != "cuda":
        return steps
    pinned = ([(index, batch.pin_memory()) for index, batch in micro_batches] for micro_batches in steps)
    return prefetched(pinned, AHEAD)
