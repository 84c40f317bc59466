"""Computes means of metrics, and the schedule of the learning rate.

Metrics are kept as (sum, count) and divided once, so that batches of any sizes have the right weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Meters:
    """Running sums and counts of named quantities. Sums stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names in a call of `add` -> sums (names,) float64
        self._counts: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds per-image values, each (B,) or of any shape whose entries have equal weight.

        Values of one shape are summed in one operation, since each operation costs a kernel launch on a GPU.
        """
        names = tuple(sorted(values))
        if not names:
            return
        found = [values[name].detach() for name in names]
        if found[0].ndim and all(value.shape == found[0].shape for value in found):
            sums = torch.stack(found).flatten(1).sum(1, dtype=torch.float64)
        else:
            sums = torch.stack([value.sum(dtype=torch.float64) for value in found])
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums
        for name in names:
            self._counts[name] = self._counts.get(name, 0.0) + values[name].numel()

    def names(self) -> list[str]:
        return sorted(self._counts)

    def stacked(self) -> Tensor:
        """The sum and count of each of `names`, (names, 2) float64. Ranks add these tables."""
        names, first = self.names(), next(iter(self._sums.values()))
        table = torch.zeros(len(names), 2, dtype=torch.float64)
        table[:, 1] = torch.tensor([self._counts[name] for name in names], dtype=torch.float64)
        table = table.to(first.device)
        for together, sums in self._sums.items():
            rows = torch.tensor([names.index(name) for name in together], device=first.device)
            table[rows, 0] += sums
        return table

    def restore(self, sums: Mapping[str, list[float]], device: torch.device) -> None:
        """Replaces all sums and counts by `sums`: name -> [sum, count], the rows of `stacked`."""
        self.reset()
        names = tuple(sorted(sums))
        if names:
            totals = [sums[name][0] for name in names]
            self._sums[names] = torch.tensor(totals, dtype=torch.float64, device=device)
            self._counts = {name: sums[name][1] for name in names}

    def reset(self) -> None:
        self._sums.clear()
        self._counts.clear()


def learning_rate_factor(images_seen: float, images: float, warmup: float, fall: float) -> float:
    """A factor that rises linearly to 1 over `warmup` images and falls linearly to 0 over the last `fall`."""
    rise = (images_seen + 1) / (warmup + 1)
    left = max(images - images_seen, 0.0) / fall if fall > 0 else 1.0
    return min(rise, left, 1.0)
