"""What differs on a GPU in a training step: precision, and batches that are prepared ahead.

A CPU always computes in float32: without the instructions, bfloat16 products are a hundred times slower.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from npdraw_dist.config.schema import Precision
from npdraw_dist.core.parts import Batch
from npdraw_dist.training.feed import prefetched

AHEAD = 2  # batches pinned before they are needed

Chunks = list[tuple[int, Batch]]


def autocast_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """What products of a forward pass are computed in, where it is not float32."""
    if device.type != "cuda" or precision == "float32":
        return None
    return torch.bfloat16 if precision == "bfloat16" or torch.cuda.is_bf16_supported() else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Products in `dtype`; weights, sums, norms and losses stay in float32."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def allow_tf32(device: torch.device, precision: Precision) -> None:
    """Lets what is not autocast, such as the backward of float32 layers, use TF32 on a GPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "float32"


def ahead(steps: Iterator[Chunks], device: torch.device) -> Iterator[Chunks]:
    """Yields `steps`. For a GPU they are pinned and prepared in a thread, so that copies overlap."""
    return prefetched(_pinned(steps), AHEAD) if device.type == "cuda" else steps


def _pinned(steps: Iterator[Chunks]) -> Iterator[Chunks]:
    for chunks in steps:
        yield [(chunk, batch.pin_memory()) for chunk, batch in chunks]
