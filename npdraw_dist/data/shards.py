"""Sources of images as shards, the unit of work of every stage: small picklable descriptions of some images.

Each shard costs the driver requests, memory and a message, so many small ones that follow each other are read
as one, as long as it fits in a task's memory.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from npdraw_dist.config.registry import SOURCES, load
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.identity import Identity, Inputs, compare
from npdraw_dist.data.readers.known import DOWNLOADS
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import SPLITS, Split, subset

READERS = 8  # threads that read the parts of a shard
FEW = 1024  # shards of a split that stay as they are: enough for the cores of a cluster, and little work
MOST_BYTES = 64 << 20  # images of a merged shard


class Shard(Protocol):
    """A part of a split. `name` is stable and safe as a file name, for example `train-00003`."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    def read(self) -> Rows:
        """The images, and the rows that are skipped. Raises UserError if the whole shard is unreadable."""
        ...


class Source(ABC):
    """A data set as lists of shards."""

    def __init__(self, data: DataConfig, seed: int, inputs: Inputs) -> None:
        self._data, self._seed, self._inputs = data, seed, inputs

    @abstractmethod
    def _shards(self, split: Split) -> Sequence[Shard]: ...

    def shards(self, split: Split) -> list[Shard]:
        """All shards of a split, in a fixed order; none if the split is empty."""
        # A shard of unknown length counts as `data.shard_rows` images.
        most = MOST_BYTES // (self._data.shard_rows * math.prod(self._data.shape))
        return merged(self._shards(split), split, max(most, 1))

    @abstractmethod
    def count(self, split: Split) -> int | None:
        """Images of a split before any is rejected; None if only reading would tell."""

    def inputs(self) -> Inputs:
        """The files that hold the images, labels and splits."""
        return self._inputs

    def facts(self) -> dict[str, Any]:
        """What a manifest records, as plain JSON."""
        names = ("background", "fit", "split_by", "source", "path", "fraction", "valid_fraction")
        return {
            **{name: getattr(self._data, name) for name in (*names, "test_fraction", "shard_rows")},
            "seed": self._seed,
            "shape": list(self._data.shape),
            "splits": {split: self.count(split) for split in SPLITS},
        }


def count_all(source: Source, splits: Sequence[Split] = SPLITS) -> int | None:
    """Images of `splits` before any is rejected; None if only reading would tell."""
    counts = [source.count(split) for split in splits]
    return None if None in counts else sum(count or 0 for count in counts)


class Reader(Protocol):
    """Reads listed images. Holds paths and sizes only, since each shard carries a copy."""

    def read(self, items: Sequence[Any]) -> Rows: ...


@dataclass(frozen=True)
class ListedShard:
    """Some items of a source that lists all its images."""

    name: str
    split: str
    reader: Reader
    items: tuple[Any, ...]

    def read(self) -> Rows:
        return self.reader.read(self.items)


class ListedSource(Source):
    """A source whose images are all known: exact splits, shards of `data.shard_rows` rows.

    items: what `reader` needs for each image of a split. The training items are shuffled (seeded) and
    `data.fraction` takes the first, so subsets are nested and a shard mixes the classes.
    """

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        reader: Reader,
        items: Mapping[Split, Sequence[Any]],
        inputs: Inputs,
    ) -> None:
        super().__init__(data, seed, inputs)
        if not items["train"]:
            raise UserError(f"data.source {data.source} has no training image; see --data.path and fractions")
        self._reader, self._items = reader, {split: tuple(items[split]) for split in SPLITS}
        self._items["train"] = tuple(subset(items["train"], data.fraction, seed))

    def _shards(self, split: Split) -> list[ListedShard]:
        items, rows = self._items[split], self._data.shard_rows
        return [
            ListedShard(f"{split}-{number:05d}", split, self._reader, items[start : start + rows])
            for number, start in enumerate(range(0, len(items), rows))
        ]

    def count(self, split: Split) -> int:
        return len(self._items[split])


@dataclass(frozen=True)
class FilePart:
    """A file, or a part of one, whose rows fall in one or more splits.

    read(split) gives its rows of one split; it must be picklable. size: bytes or rows, for the facts.
    """

    path: str
    splits: tuple[Split, ...]
    read: Callable[[Split], Rows]
    size: int


@dataclass(frozen=True)
class _JoinedRead:
    """Reads parts one after another, with threads, since a store takes a while for each."""

    reads: tuple[Callable[[Split], Rows], ...]

    def __call__(self, split: Split) -> Rows:
        with ThreadPoolExecutor(READERS) as pool:
            return Rows.cat(list(pool.map(lambda read: read(split), self.reads)))


def join_small(parts: Sequence[FilePart], rows: int) -> list[FilePart]:
    """Joins parts that follow each other, have the same splits and at most `rows` rows together."""
    groups: list[list[FilePart]] = []
    for part in parts:
        last = groups[-1] if groups else []
        if last and last[0].splits == part.splits and sum(p.size for p in last) + part.size <= rows:
            last.append(part)
        else:
            groups.append([part])
    return [
        part
        if not others
        else replace(
            part,
            read=_JoinedRead((part.read, *(other.read for other in others))),
            size=part.size + sum(other.size for other in others),
        )
        for part, *others in groups
    ]


@dataclass(frozen=True)
class FileShard:
    """The rows of one split in one part of a file."""

    name: str
    split: Split
    part: FilePart

    def read(self) -> Rows:
        return self.part.read(self.split)


class FileSource(Source):
    """A source of files that only the workers read: one shard for each part of a file and split.

    counts: images of each split, if the files say so.
    """

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        parts: Sequence[FilePart],
        counts: Mapping[Split, int | None],
        inputs: Inputs,
    ) -> None:
        super().__init__(data, seed, inputs)
        if not any("train" in part.splits for part in parts):
            raise UserError(f"data.path {data.path} has no training shard of data.source {data.source}")
        self._parts, self._counts = parts, counts

    def _shards(self, split: Split) -> list[FileShard]:
        parts = [part for part in self._parts if split in part.splits]
        return [FileShard(f"{split}-{number:05d}", split, part) for number, part in enumerate(parts)]

    def count(self, split: Split) -> int | None:
        known = split != "train" or self._data.fraction == 1
        return self._counts.get(split) if known else None

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "pieces": len(self._parts), "size": sum(part.size for part in self._parts)}


@dataclass(frozen=True)
class MergedShard:
    """Shards that follow each other in a split, read as one."""

    name: str
    split: str
    shards: tuple[Shard, ...]

    def read(self) -> Rows:
        return Rows.cat([shard.read() for shard in self.shards])


def merged(shards: Sequence[Shard], split: Split, most: int) -> list[Shard]:
    """At most `most` shards as one. Their number is in the name, so that it names the same rows always."""
    each = min(len(shards) // FEW, most)
    if each <= 1:
        return list(shards)
    return [
        MergedShard(f"{split}-{number:05d}x{each}", split, tuple(shards[start : start + each]))
        for number, start in enumerate(range(0, len(shards), each))
    ]


def open_source(data: DataConfig, seed: int, download: bool = True) -> Source:
    """The data set that `data` names, its splits drawn with `seed`. Raises UserError if it is missing.

    download: torchvision may download missing files of a known set.
    """
    before = DOWNLOADS.set(download)
    try:
        source: Source = load(SOURCES[data.source].code)(data, seed)
    finally:
        DOWNLOADS.reset(before)
    return source


class DataChanged(UserError):
    """The data changed: what was read of them, and is not finished, is of no use."""


@contextmanager
def unchanged(data: DataConfig, seed: int, before: Identity, reader: str) -> Iterator[None]:
    """Raises DataChanged at the end of the block, also after a UserError, if the data are not as `before`.

    reader: who reads them inside the block, for the message.
    """
    failed: UserError | None = None
    try:
        yield
    except UserError as error:
        failed = error
    try:
        changes = str(compare(before, open_source(data, seed).inputs()))
    except UserError as error:  # they are not even there
        changes = str(error)
    if changes:
        raise DataChanged(
            f"the data changed while {reader} read them: {changes}; nothing of what it read is kept: "
            "give the same command again once the data stay as they are"
        )
    if failed is not None:
        raise failed
