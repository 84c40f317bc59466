"""Metrics travel as (sum, count) and are divided once, so that batch sizes have no influence."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Meters:
    """Running sums and counts of named quantities, on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds per-image values: each (B,), or any shape whose entries have equal weight."""
        for name, value in values.items():
            # Filled on the device, not copied to it.
            count = value.new_full((), value.numel(), dtype=torch.float64)
            pair = torch.stack([value.detach().double().sum(), count])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def names(self) -> list[str]:
        return sorted(self._sums)

    def stacked(self) -> Tensor:
        """(names, 2) float64: sum and count in the order of `names`. Ranks add these."""
        return torch.stack([self._sums[name] for name in self.names()])

    def means(self, stacked: Tensor | None = None) -> dict[str, float]:
        """name -> sum / count, of `stacked` (summed over ranks) if given."""
        table = (self.stacked() if stacked is None else stacked).cpu()
        return {name: float(table[i, 0] / table[i, 1]) for i, name in enumerate(self.names())}

    def restore(self, sums: Mapping[str, list[float]], device: torch.device) -> None:
        """Goes on from name -> [sum, count], the rows of `stacked`."""
        self._sums = {n: torch.tensor(pair, dtype=torch.float64, device=device) for n, pair in sums.items()}

    def reset(self) -> None:
        self._sums.clear()
