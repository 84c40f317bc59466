"""A portion of a sample of patches: those whose keys are in one range, in the process that holds them.

Shapes: m patches of a block, n patches of the portion, D = C * P * P.
"""

import time

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.bank.patches import ALL


class Portion:
    """Gathers blocks of keys (m,) and patches (m, D), in any order."""

    def __init__(self) -> None:
        self._blocks: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint8]]] = {}
        self._cpu_started = time.process_time()

    def add(self, block: int, keys: NDArray[np.uint64], patches: NDArray[np.uint8]) -> None:
        """A block that comes again, of a task that Ray ran twice, changes nothing."""
        # Copies: what Ray gives is a view of its object store.
        self._blocks[block] = keys.copy(), patches.copy()

    def count(self, limit: int = ALL) -> int:
        """Patches whose key is at most `limit`."""
        return sum(int((keys <= np.uint64(limit)).sum()) for keys, _ in self._blocks.values())

    def take(self, most: int) -> NDArray[np.uint8]:
        """(min(most, n), D): the patches with the smallest keys, in order. It holds none after."""
        blocks = [self._blocks[block] for block in sorted(self._blocks)]
        self._blocks.clear()
        keys = np.concatenate([keys for keys, _ in blocks])
        patches = np.concatenate([patches for _, patches in blocks])
        del blocks
        return patches[np.argsort(keys, kind="stable")[:most]]

    def core_seconds(self) -> float:
        """CPU seconds of this process since the portion was made."""
        return time.process_time() - self._cpu_started
