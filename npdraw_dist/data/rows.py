"""What a shard holds once it is read: images with their ids, and the rows that could not be read.

Shapes: N images, C channels, H x W pixels.
"""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import BadPicture, Frame


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


class RowBuilder:
    """Collects the good rows of a shard and the rejects."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._labels: list[int] = []
        self._rejects: list[Reject] = []

    def add(self, name: str, label: int, read: Callable[[], NDArray[np.uint8]]) -> None:
        """Adds the image that `read` gives, or rejects the row if it raises BadPicture."""
        if name in self._images:
            return self.reject(name, "duplicate id")
        try:
            image = read()
        except BadPicture as error:
            return self.reject(name, str(error))
        self._images[name] = image
        self._labels.append(label)
        return None

    def reject(self, name: str, reason: str) -> None:
        self._rejects.append(Reject(name, reason))

    def rows(self) -> Rows:
        images = (
            np.stack(list(self._images.values())) if self._images else np.zeros((0, *self._shape), np.uint8)
        )
        return Rows(list(self._images), images, np.array(self._labels, dtype=np.int64), self._rejects)


def frame_of(data: DataConfig) -> Frame:
    """What the pictures of the user's own sources become."""
    return Frame(data.shape, data.background, data.fit)
