"""Finds the operations for which the host would wait for a GPU, on any device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# They read a value, or their result has a shape that depends on values; `lift_fresh` is torch.tensor(...),
# which copies a number of the host.
READS = (
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
)
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")


class HostReads(TorchDispatchMode):
    """found: the names of such operations while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in READS or (name == "repeat_interleave" and isinstance(args[0], Tensor)):
            self.found.append(name)
        if name in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.found.append(f"{name} by a mask")
        return func(*args, **(kwargs or {}))
