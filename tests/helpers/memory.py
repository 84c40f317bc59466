"""The memory of tensors, without computing them: on the device `meta` they have sizes only."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """`peak`: the most bytes that tensors made in its block had at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.is_view:
            return found
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for made in tree_leaves(found):
            if torch.is_tensor(made) and (storage := made.untyped_storage())._cdata not in given:
                self._living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._living = {key: kept for key, kept in self._living.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return found
