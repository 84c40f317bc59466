"""What differs on a GPU in a training step: precision, and batches that are prepared ahead.

A CPU always computes in float32: without the instructions, bfloat16 products are a hundred times slower.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch

from npdraw_dist.config.schema import Precision
from npdraw_dist.core.parts import Batch
from npdraw_dist.training.feed import prefetched

AHEAD = 2  # steps whose batches are pinned before they are needed

MicroBatches = list[tuple[int, Batch]]  # (index in the global batch, images)


def usable(device: torch.device) -> torch.device:
    """`device`, or the CPU where torch has no GPU: a build for CPUs, or a GPU that Ray only pretends."""
    return device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """The type in which a forward pass computes its products; None for float32."""
    if device.type != "cuda" or precision == "float32":
        return None
    return torch.bfloat16 if precision == "bfloat16" or torch.cuda.is_bf16_supported() else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Products in `dtype`; weights, sums, norms and losses stay in float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def allow_tf32(device: torch.device, precision: Precision) -> None:
    """Lets a GPU use TF32 for what is not autocast, such as the backward pass of float32 layers."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "float32"


def prepare_ahead(steps: Iterator[MicroBatches], device: torch.device) -> Iterator[MicroBatches]:
    """Yields `steps`. For a GPU a thread pins them in memory ahead of time, so that copies overlap."""
    return prefetched(_pinned(steps), AHEAD) if device.type == "cuda" else steps


def _pinned(steps: Iterator[MicroBatches]) -> Iterator[MicroBatches]:
    for micro_batches in steps:
        yield [(index, batch.pin_memory()) for index, batch in micro_batches]
