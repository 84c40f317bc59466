"""Marks of tests that need a GPU. Also finds operations that would wait for a GPU, without one."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Test = TypeVar("Test", bound=Callable[..., object])
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

# Operations whose result, or its size, is read on the host.
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


def needs_gpu(test: Test) -> Test:
    """Marks a test `gpu`, and skips it where there is none."""
    for mark in on_gpu:
        test = mark(test)
    return test


class Waits(TorchDispatchMode):
    """Counts in `seen` the operations of its block that wait, with the reason.

    Copies between devices are seen with `meta` tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if (reason := _wait(name, args, kwargs or {})) is not None:
            self.seen[f"{name}: {reason}"] += 1
        return func(*args, **(kwargs or {}))


def _wait(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
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
