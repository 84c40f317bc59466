"""The parts of a training step that differ on a GPU: precision, and batches that are prepared in advance.

A CPU always computes in float32, since products in bfloat16 are a hundred times slower on a CPU without
bfloat16 instructions.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar

import torch

from npdraw_dist.config.training import Precision
from npdraw_dist.system.errors import UserError
from npdraw_dist.training.feed import Rows, prefetched

BFLOAT16_SINCE = (8, 0)  # lowest compute capability with bfloat16 (Ampere)
AHEAD = 2  # steps whose batches are pinned in advance
# Rows of an automatic micro-batch on a CPU, whose cache it fits, and of the first one on a GPU.
CPU_ROWS, FIRST_ROWS = 32, 16
USED_MEMORY = 0.6  # share of a GPU's free memory that an automatic micro-batch may take

Result = TypeVar("Result")


def usable(device: torch.device) -> torch.device:
    """`device`, or the CPU if torch finds no GPU, as in a CPU build or if Ray only simulates the GPU."""
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
    """A context for matmuls in `dtype`. Weights, sums, norms, losses and exact layers stay in float32."""
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


def prepare_ahead(steps: Iterator[Rows], device: torch.device) -> Iterator[Rows]:
    """Yields `steps`. For a GPU, a thread pins their memory ahead, so that copies overlap with training."""
    if device.type != "cuda":
        return steps
    return prefetched(((first, batch.pin_memory()) for first, batch in steps), AHEAD)


class MicroBatch:
    """Chooses the number of rows that a device computes at once.

    given: this number, or `auto`. memory_share: share of the GPU's memory that this process may take.
    """

    def __init__(self, given: int | Literal["auto"], device: torch.device, memory_share: float = 1.0) -> None:
        self.device, self.memory_share = device, memory_share
        self.measures = given == "auto" and device.type == "cuda"
        automatic = FIRST_ROWS if self.measures else CPU_ROWS
        self.rows = automatic if given == "auto" else given

    @contextmanager
    def computing(self, rows: int) -> Iterator[None]:
        """Surrounds the passes of a micro-batch. Raises UserError if they exceed the memory of a GPU.

        With `auto`, the first block on a GPU measures the memory of a row, and sets `rows` for the others.
        """
        measures, self.measures = self.measures, False
        if measures:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        try:
            yield
        except torch.OutOfMemoryError:
            raise UserError(
                f"the GPU has too little memory for a micro-batch of {rows} rows; lower --train.micro_batch"
            ) from None
        if measures:
            peak = torch.cuda.max_memory_allocated(self.device)
            free, total = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            spare = min(free, total * self.memory_share - torch.cuda.memory_allocated(self.device))
            self.rows = rows_in(spare, (peak - before) / rows)


def rows_in(memory: float, row: float) -> int:
    """How many rows fit: a power of two of at least 1, for products of regular sizes.

    memory: free bytes; a part is left for other sizes of tensors and for hard draws. row: bytes of a row.
    """
    return 1 << max(int(USED_MEMORY * memory / max(row, 1.0)).bit_length() - 1, 0)
