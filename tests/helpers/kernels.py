"""Counts how many kernels a training step launches, and what in it would wait for a GPU.

The operations that reach the dispatcher are counted. Some of them, such as `logsumexp`, are several kernels
on a GPU, so a count is a lower bound.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npdraw_dist.core.parts import Batch
from npdraw_dist.training.device import autocast
from npdraw_dist.training.loop import Run

# Operations that allocate or rename memory, beside views.
NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"),
    *("promote_types", "_record_function_enter_new", "_record_function_exit"),
}
# Their result, or its size, comes to the host.
SIZES = (
    *("nonzero", "masked_select", "bincount", "repeat_interleave"),
    *("_unique2", "unique_dim", "unique_consecutive"),
)
WAITS = {
    **dict.fromkeys(("_local_scalar_dense", "equal"), "a number is read"),
    **dict.fromkeys(SIZES, "a size is read"),
    "lift_fresh": "host data are made a tensor",
}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class KernelCounter(TorchDispatchMode):
    """Counts in its block, by operation, what launches a kernel, and what would wait for a GPU.

    The second is also seen on a CPU, but for copies between devices; `meta` tensors show these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if (reason := _wait(name, args, kwargs)) is not None:
            self.waits[f"{name}: {reason}"] += 1
        found = func(*args, **kwargs)
        if not func.is_view and name not in NO_KERNEL:
            self.kernels[name] += 1
        return found


def _wait(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why an operation waits for a GPU; None if it does not."""
    if name in INDEXING:
        masks = (torch.bool, torch.uint8)
        if any(isinstance(index, Tensor) and index.dtype in masks for index in args[1]):
            return "a mask is an index"
    elif name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        target = torch.device(kwargs.get("device") or source.device) if name == "_to_copy" else args[0].device
        blocks = not (kwargs.get("non_blocking") or args[2:] == (True,))
        if target.type != source.device.type and blocks:
            return f"{source.device.type} to {target.type}"
    elif name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return None
    return WAITS.get(name)


def count_step(trained: Run, batch: Batch, step: int, images: int) -> dict[str, KernelCounter]:
    """Counts of the forward and the backward pass of one micro-batch, and of a whole step with it.

    step, images: as `Run.update` takes them. The check for finite gradients is left out, since it is not of
    every step on a GPU.
    """
    trained.checks = lambda done: False  # type: ignore[method-assign]
    for _ in range(2):  # the optimizer makes its moments, caches are filled
        trained.update(step, [(0, batch)], images)
    trained.optimizer.zero_grad(set_to_none=True)
    here = batch.to(trained.context.device)
    progress = step * trained.config.batch_size / images
    counts = {name: KernelCounter() for name in ("forward", "backward", "step")}
    with counts["forward"], autocast(trained.context.device, trained.precision):
        loss, _ = trained.module(here, progress, trained.generator)
    with counts["backward"]:
        loss.sum().backward()
    with counts["step"]:
        trained.update(step, [(0, here)], images)
    return counts
