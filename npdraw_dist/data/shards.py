"""The unit of work of every stage: a small picklable description of some images, read on any worker."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import SPLITS, Split, subset


class Shard(Protocol):
    """A part of a split. `name` is stable and safe as a file name, such as `train-00003`."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    def read(self) -> Rows:
        """The images, with what had to be skipped. Raises UserError where the whole shard is unreadable."""
        ...


class Source(Protocol):
    """A data set as lists of shards."""

    def shards(self, split: Split) -> list[Shard]:
        """All shards of a split, in a fixed order; none where the split is empty."""
        ...

    def count(self, split: Split) -> int | None:
        """Images of a split before any is rejected; None where only reading would tell."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a manifest writes down: source, path, seed, shape, splits. Plain JSON."""
        ...


class Reader(Protocol):
    """Reads listed images; holds paths and sizes only, for each shard carries a copy."""

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


class ListedSource:
    """A source whose images are all known: exact splits, shards of `data.shard_rows` rows.

    items: what `reader` needs for each image of a split. The training items are shuffled (seeded),
    and `data.fraction` takes a prefix, so that subsets are nested and a shard mixes the classes.
    """

    def __init__(
        self, data: DataConfig, seed: int, reader: Reader, items: Mapping[Split, Sequence[Any]]
    ) -> None:
        if not items["train"]:
            raise UserError(f"data.source {data.source} has no training image; see --data.path and fractions")
        self._data = data
        self._seed = seed
        self._reader = reader
        self._items = {split: tuple(items[split]) for split in SPLITS}
        self._items["train"] = tuple(subset(items["train"], data.fraction, seed))

    def shards(self, split: Split) -> list[Shard]:
        items, rows = self._items[split], self._data.shard_rows
        return [
            ListedShard(f"{split}-{number:05d}", split, self._reader, items[start : start + rows])
            for number, start in enumerate(range(0, len(items), rows))
        ]

    def count(self, split: Split) -> int:
        return len(self._items[split])

    def facts(self) -> dict[str, Any]:
        return source_facts(self._data, self._seed, {split: self.count(split) for split in SPLITS})


@dataclass(frozen=True)
class Piece:
    """A file, or a part of one, whose rows fall in one or more splits.

    read(split) gives its rows of one split; it must be picklable. size: bytes or rows, for the facts.
    """

    path: str
    splits: tuple[Split, ...]
    read: Callable[[Split], Rows]
    size: int


@dataclass(frozen=True)
class PieceShard:
    """The rows of one split in one piece."""

    name: str
    split: Split
    piece: Piece

    def read(self) -> Rows:
        return self.piece.read(self.split)


class PieceSource:
    """A source of files that are read only by the workers: one shard for each piece and split.

    counts: images of each split, where the files say so.
    """

    def __init__(
        self, data: DataConfig, seed: int, pieces: Sequence[Piece], counts: Mapping[Split, int | None]
    ) -> None:
        if not any("train" in piece.splits for piece in pieces):
            raise UserError(f"data.path {data.path} has no training shard of data.source {data.source}")
        self._data, self._seed, self._pieces, self._counts = data, seed, pieces, counts

    def shards(self, split: Split) -> list[Shard]:
        pieces = [piece for piece in self._pieces if split in piece.splits]
        return [PieceShard(f"{split}-{number:05d}", split, piece) for number, piece in enumerate(pieces)]

    def count(self, split: Split) -> int | None:
        known = split != "train" or self._data.fraction == 1
        return self._counts.get(split) if known else None

    def facts(self) -> dict[str, Any]:
        facts = source_facts(self._data, self._seed, {split: self.count(split) for split in SPLITS})
        return {**facts, "pieces": len(self._pieces), "size": sum(piece.size for piece in self._pieces)}


def source_facts(data: DataConfig, seed: int, counts: Mapping[Split, int | None]) -> dict[str, Any]:
    """The facts that every source states alike."""
    return {
        "source": data.source,
        "path": data.path,
        "seed": seed,
        "shape": list(data.shape),
        "splits": dict(counts),
        "fraction": data.fraction,
        "valid_fraction": data.valid_fraction,
        "test_fraction": data.test_fraction,
        "shard_rows": data.shard_rows,
    }


def check_rejects(rejects: int, total: int, data: DataConfig, listed: bool = True) -> None:
    """Raises UserError if `rejects` of `total` rows read are more than data.max_bad_fraction.

    listed: the rejects are in a rejects.jsonl, which the message names.
    """
    if rejects > data.max_bad_fraction * total:
        see = "see rejects.jsonl, " if listed else ""
        raise UserError(
            f"{rejects} of {total} rows of data.source {data.source} are bad, more than "
            f"data.max_bad_fraction ({data.max_bad_fraction:g}); {see}mend the data "
            "or raise --data.max_bad_fraction"
        )


# Where the number of rows is not known, so many are read before a stage may stop early.
LEAST_ROWS = 1000


class RejectLimit:
    """Tells while shards are read, in any order, whether too many rows are bad even if all others are good.

    total: rows of all `shards`. None where that is not known: then the shards to come are taken to be as
    long as those read of their split (splits of which none was read yet are left out), once LEAST_ROWS
    rows are read.
    """

    def __init__(self, data: DataConfig, shards: Sequence[Shard], total: int | None) -> None:
        self._allowed, self._total = data.max_bad_fraction, total
        self._shards = Counter(shard.split for shard in shards)
        self._read: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self.rejects = 0

    @property
    def rows(self) -> int:
        """Rows read, rejects included."""
        return self._rows.total()

    def add(self, split: str, images: int, rejects: int) -> bool:
        """Counts a shard that was read; True where too many rows are bad."""
        self._read[split] += 1
        self._rows[split] += images + rejects
        self.rejects += rejects
        total: float = max(self._total or 0, self.rows)
        if self._total is None:
            if self.rows < LEAST_ROWS:
                return False
            total = sum(rows / self._read[s] * self._shards[s] for s, rows in self._rows.items())
        return self.rejects > self._allowed * total
