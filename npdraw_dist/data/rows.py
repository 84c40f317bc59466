"""What a shard holds once it is read: images with their ids, and the rows that could not be read.

Shapes: N images, C channels, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Reject:
    """A row that was skipped, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """Images of one shard.

    ids: N strings, stable and unique. images: (N, C, H, W) uint8. labels: (N,) int64 with -1 for
    unknown, or None. rejects: the rows that were skipped. left_out: how many others the source leaves out, by
    reason, such as blank glyphs; they count as nothing. Raises ValueError on anything else.
    """

    ids: list[str]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    rejects: list[Reject] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images are (N, C, H, W) uint8, not {self.images.shape} {self.images.dtype}")
        if len(self.ids) != len(self.images) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"{len(self.images)} images need as many different ids, not {len(self.ids)}")
        if self.labels is not None and (
            self.labels.shape != (len(self.ids),) or self.labels.dtype != np.int64
        ):
            raise ValueError(f"labels are (N,) int64, not {self.labels.shape} {self.labels.dtype}")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Sequence[int] | NDArray[Any]) -> "Rows":
        """The rows at integer positions `index`, in that order; rejects and `left_out` stay."""
        rows = np.asarray(index, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return Rows([self.ids[i] for i in rows], self.images[rows], labels, self.rejects, self.left_out)
