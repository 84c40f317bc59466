"""What differs on a GPU in a training step: precision, compilation, and batches that are prepared ahead.

A CPU always computes in float32: without the instructions, bfloat16 products are a hundred times slower.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from npdraw_dist.config.schema import Precision
from npdraw_dist.core.parts import Batch
from npdraw_dist.training.feed import prefetched

AHEAD = 2  # steps whose batches are pinned before they are needed

MicroBatches = list[tuple[int, Batch]]  # (index in the global batch, images)


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


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Compiles each network in place: names of weights and checkpoints stay.

    On a GPU each becomes a CUDA graph, one launch instead of some ten, forward and backward. Noise is drawn
    outside: a network is a function of tensors, but for dropout, whose generator may be seeded anew between
    replays. Shapes are static, so that another batch size is another graph.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    for network in networks:
        network.compile(mode=mode, dynamic=False)


class Graphs:
    """What CUDA graphs ask of a training loop. Without them (`used` false) nothing is done.

    A graph writes its outputs to the same memory at each replay, gradients of weights too. Autograd would
    take such a gradient as `.grad` without a copy, and the next micro-batch would add it to itself
    (pytorch#96693). So `.grad` has memory of its own from the start, to which gradients are added.
    """

    def __init__(self, used: bool) -> None:
        self.used = used

    def begin(self) -> None:
        """Before a forward pass: nothing that earlier ones gave is read any more."""
        if self.used:
            torch.compiler.cudagraph_mark_step_begin()

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """`zero_grad`; with graphs the gradients stay where they are, or get their place."""
        optimizer.zero_grad(set_to_none=not self.used)
        if self.used:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)


EAGER = Graphs(used=False)
