"""What a shard holds once it is read: images with their ids, and the rows that could not be read.

Shapes: N images, C channels, H x W pixels.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

    @classmethod
    def cat(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of one or more parts. An id that an earlier part has too is rejected."""
        seen: set[str] = set()
        kept, rejects, left_out = [], [], Counter[str]()
        for part in parts:
            own = part if seen.isdisjoint(part.ids) else part.without(seen)
            seen.update(own.ids)
            kept.append(own)
            rejects += own.rejects
            left_out.update(own.left_out)
        labelled = any(part.labels is not None for part in kept)
        labels = np.concatenate([part.known_labels() for part in kept]) if labelled else None
        ids = [name for part in kept for name in part.ids]
        return cls(ids, np.concatenate([part.images for part in kept]), labels, rejects, dict(left_out))

    def known_labels(self) -> NDArray[np.int64]:
        """(N,), -1 for unknown."""
        return np.full(len(self), -1, np.int64) if self.labels is None else self.labels

    def without(self, ids: Container[str]) -> "Rows":
        """The rows but those whose id is in `ids`, which another shard has; these are rejected."""
        kept = self.take([i for i, name in enumerate(self.ids) if name not in ids])
        repeated = [Reject(name, "duplicate id") for name in self.ids if name in ids]
        return replace(kept, rejects=[*self.rejects, *repeated])

    def take(self, index: Sequence[int] | NDArray[Any]) -> "Rows":
        """The rows at integer positions `index`, in that order; rejects and `left_out` stay."""
        rows = np.asarray(index, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        return Rows([self.ids[i] for i in rows], self.images[rows], labels, self.rejects, self.left_out)
