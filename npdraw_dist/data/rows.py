"""Images with their ids, as read from a source, and the rows that are rejected.

Shapes: N images, C channels, H x W pixels.
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import BadPicture, Frame
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import write_text

REJECTS = "rejects.jsonl"
LEAST_ROWS = 1000  # least number of rows read before a stage may stop for bad rows, if the total is unknown

RejectLine = dict[str, str]  # a line of rejects.jsonl, with the keys id, reason and shard


@dataclass(frozen=True)
class Reject:
    """A row that was skipped, with the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """Images of one shard.

    ids: N strings, stable and unique. images: (N, C, H, W) uint8. labels: (N,) int64 with -1 for unknown, or
    None. rejects: the rows that were skipped. left_out: reason -> number of other rows that the source leaves
    out, such as blank glyphs. words: N texts about the images, "" for an image without words; None if no
    image has any. Raises ValueError if a field has another type or shape.
    """

    ids: list[str]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    rejects: list[Reject] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)
    words: list[str] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be (N, C, H, W) uint8, not {self.images.shape} {self.images.dtype}"
            )
        if len(self.ids) != len(self.images) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"{len(self.images)} images need as many different ids, not {len(self.ids)}")
        labels = self.labels
        if labels is not None and (labels.shape != (len(self.ids),) or labels.dtype != np.int64):
            raise ValueError(f"labels must be (N,) int64, not {labels.shape} {labels.dtype}")
        if self.words is not None and len(self.words) != len(self.ids):
            raise ValueError(f"{len(self.ids)} images need as many texts, not {len(self.words)}")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def cat(cls, parts: Sequence["Rows"]) -> "Rows":
        """Joins the rows of one or more parts. A row whose id an earlier part also has is rejected."""
        ids: dict[str, None] = {}
        kept, left_out = [], Counter[str]()
        for part in parts:
            kept.append(part if ids.keys().isdisjoint(part.ids) else part.without(ids))
            ids |= dict.fromkeys(kept[-1].ids)
            left_out.update(part.left_out)
        labelled = any(part.labels is not None for part in kept)
        labels = np.concatenate([part.known_labels() for part in kept]) if labelled else None
        has_words = any(part.words is not None for part in kept)
        words = [text for part in kept for text in part.words or [""] * len(part)] if has_words else None
        rejects = [reject for part in kept for reject in part.rejects]
        images = np.concatenate([part.images for part in kept])
        return cls(list(ids), images, labels, rejects, dict(left_out), words)

    def known_labels(self) -> NDArray[np.int64]:
        """The labels (N,), with -1 for an unknown label."""
        return np.full(len(self), -1, np.int64) if self.labels is None else self.labels

    def values(self, column: str) -> Sequence[Any]:
        """The column `label`, with -1 for unknown, or `words`, with "" for none."""
        known: dict[str, Any] = {"label": self.known_labels(), "words": self.words or [""] * len(self)}
        return known[column]

    def without(self, ids: Container[str]) -> "Rows":
        """Rejects the rows whose id is in `ids`, with the reason "duplicate id"."""
        kept = self.take([i for i, name in enumerate(self.ids) if name not in ids])
        repeated = [Reject(name, "duplicate id") for name in self.ids if name in ids]
        return replace(kept, rejects=[*self.rejects, *repeated])

    def __getitem__(self, index: slice) -> "Rows":
        """The rows of a slice. Only a slice from row 0 keeps `rejects` and `left_out`."""
        part = self.take(np.arange(len(self))[index])
        return replace(part, rejects=[], left_out={}) if index.start else part

    def take(self, index: Sequence[int] | NDArray[Any]) -> "Rows":
        """The rows at integer positions `index`, in that order, with the same `rejects` and `left_out`."""
        rows = np.asarray(index, dtype=np.int64)
        labels = None if self.labels is None else self.labels[rows]
        words = None if self.words is None else [self.words[i] for i in rows]
        return replace(
            self, ids=[self.ids[i] for i in rows], images=self.images[rows], labels=labels, words=words
        )


class RowBuilder:
    """Collects the rows of a shard. shape: (C, H, W). left_out: as in `Rows`; the caller adds to it."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape, self.left_out = shape, Counter[str]()
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._labels: list[int] = []
        self._words: list[str] = []
        self._rejects: list[Reject] = []

    def add(self, name: str, label: int, read: Callable[[], NDArray[np.uint8]], words: str = "") -> None:
        """Adds the image that `read` returns, or rejects the row if `read` raises BadPicture.

        name: the id. label: number of a class, or -1 for unknown; any other label rejects the row.
        """
        try:
            if name in self._images:
                raise BadPicture("duplicate id")
            if not -1 <= label < 2**63:
                raise BadPicture(f"label {label}; a class is a number from 0, or -1 if it is not known")
            self._images[name] = read()
            self._labels.append(label)
            self._words.append(words)
        except BadPicture as error:
            self.reject(name, str(error))

    def reject(self, name: str, reason: str) -> None:
        self._rejects.append(Reject(name, reason))

    def rows(self) -> Rows:
        ids, labels = list(self._images), np.array(self._labels, np.int64)
        images = np.stack(list(self._images.values())) if ids else np.zeros((0, *self._shape), np.uint8)
        words = self._words if any(self._words) else None
        return Rows(ids, images, labels, self._rejects, dict(self.left_out), words)


def frame_of(data: DataConfig) -> Frame:
    return Frame(data.shape, data.background, data.fit)


def write_rejects(filesystem: fs.FileSystem, folder: str, lines: Sequence[RejectLine]) -> None:
    """Writes rejects.jsonl, sorted by shard. If there are no rejects, it only empties an existing file."""
    path = f"{folder}/{REJECTS}"
    if lines or filesystem.get_file_info(path).type == fs.FileType.File:
        in_order = sorted(lines, key=lambda line: line["shard"])
        write_text(filesystem, path, "".join(json.dumps(line) + "\n" for line in in_order))


def check_rejects(rejects: int, total: int, data: DataConfig, listed: bool = True) -> None:
    """Raises UserError if rejects exceed data.max_bad_fraction. listed: whether rejects.jsonl lists them."""
    if rejects > data.max_bad_fraction * total:
        raise UserError(
            f"{rejects} of {total} rows of data.source {data.source} are bad, more than "
            f"data.max_bad_fraction ({data.max_bad_fraction:g}); {f'see {REJECTS}, ' if listed else ''}"
            "mend the data or raise --data.max_bad_fraction"
        )


class RejectLimit:
    """Counts rows while pieces are read, in any order, and reports when too many are bad.

    Too many rows are bad if they exceed `data.max_bad_fraction` of all rows, read or not. splits: the splits
    of each piece. total: number of rows of all pieces. If it is None, it is estimated once LEAST_ROWS rows
    are read, as if each piece had the mean number of rows of the read pieces with the same splits.
    """

    def __init__(self, data: DataConfig, splits: Iterable[tuple[str, ...]], total: int | None) -> None:
        self._data, self._total = data, total
        self._pieces, self._read, self._rows = Counter(splits), Counter[Any](), Counter[Any]()
        self.images = self.rejects = 0

    @property
    def rows(self) -> int:
        """The number of rows so far, including rejects."""
        return self.images + self.rejects

    def add(self, splits: tuple[str, ...], images: int, rejects: int) -> bool:
        """Counts a piece that was read. Returns whether too many rows are bad."""
        self._read[splits] += 1
        self._rows[splits] += images + rejects
        self.images += images
        self.rejects += rejects
        total: float = max(self._total or 0, self.rows)
        if self._total is None:
            if self.rows < LEAST_ROWS:
                return False
            total = sum(rows / self._read[s] * self._pieces[s] for s, rows in self._rows.items())
        return self.rejects > self._data.max_bad_fraction * total
