"""Divides a data source into pieces, which `ingest` reads. A piece holds no images and can be pickled.

Each piece costs the driver requests, memory and a message, so many small parts are grouped in one piece.
"""

import math
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from npdraw_dist.config.prepared import Prepared, read_prepared
from npdraw_dist.config.registry import SOURCES, load
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.config.section import size_of
from npdraw_dist.data.listing import below_root, list_paths, stamp_of
from npdraw_dist.data.parquet import read_whole, rows_of
from npdraw_dist.data.readers.known import DOWNLOADS
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import SPLITS, Split, named_split, stated_split, subset
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.process import require_extra
from npdraw_dist.system.storage import display_path

FEW = 1024  # up to this number of parts, each part is a piece, so that all cores have work
MOST_BYTES = 64 << 20  # largest size in bytes of the images in a piece of several parts
PARTS, LEAST_ROWS = 8, 2048  # number of shards into which `listed` cuts a small set; least rows in each

# Reads the rows of a part that are in the requested splits.
Read = Callable[[Collection[Split]], dict[Split, Rows]]


class Part(NamedTuple):
    """A file or a part of a file. splits: the splits that its rows can be in. read: must allow pickling."""

    splits: tuple[Split, ...]
    read: Read


@dataclass(frozen=True, slots=True)
class Piece:
    """Parts of a source that are read together. number: the names of the piece's shards contain it."""

    number: int
    splits: tuple[Split, ...]
    reads: tuple[Read, ...]

    def read(self, splits: Collection[Split]) -> dict[Split, Rows]:
        """Reads the rows in each of `splits`. Raises UserError if the whole piece is unreadable."""
        wanted = [split for split in self.splits if split in splits]
        found = [read(wanted) for read in self.reads]
        return {split: Rows.cat([rows[split] for rows in found]) for split in wanted}

    def name(self, split: Split) -> str:
        """The name of the shard with the piece's rows in a split. It is valid as a file name."""
        return f"{split}-{self.number:05d}"


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of a piece that are in one split."""

    name: str
    split: Split
    piece: Piece

    def read(self) -> Rows:
        return self.piece.read((self.split,))[self.split]


@dataclass
class Source:
    """A data set, divided into parts.

    parts: the whole data set, in a fixed order. counts: split -> number of images, including bad ones; None
    or no entry if it is unknown before reading. stamp: changes with the files (`listing.stamp_of`).
    classes: names of the labels, in order, if known. canonical: the canonical shards, if the data set
    consists of them. unique: whether ids are certain to be unique.
    """

    data: DataConfig
    seed: int
    parts: Sequence[Part]
    counts: Mapping[Split, int | None]
    stamp: str
    classes: Sequence[str] = ()
    canonical: "Canonical | None" = None
    unique: bool = False

    def pieces(self) -> list[Piece]:
        """All pieces, in a fixed order. A piece with a given number always has the same rows."""
        # The length of a part is unknown, so each part counts as `data.rows_a_shard` images.
        most = MOST_BYTES // (self.data.rows_a_shard * math.prod(self.data.shape))
        each = 1 if self.canonical else max(min(len(self.parts) // FEW, most), 1)
        alike: dict[tuple[Split, ...], list[Read]] = {}
        for part in self.parts:
            alike.setdefault(part.splits, []).append(part.read)
        found = list[Piece]()
        for splits, reads in alike.items():
            for start in range(0, len(reads), each):
                found.append(Piece(len(found), splits, tuple(reads[start : start + each])))
        return found

    def shards(self, split: Split) -> list[Shard]:
        """All shards of a split, in a fixed order. A shard with a given name always has the same rows."""
        return [Shard(p.name(split), split, p) for p in self.pieces() if split in p.splits]

    def count(self, *splits: Split) -> int | None:
        """Number of images in `splits` (default: all), including bad ones; None if unknown before reading."""
        counts = [self.counts.get(split) for split in splits or SPLITS]
        return None if None in counts else sum(count or 0 for count in counts)

    def facts(self) -> dict[str, Any]:
        """The facts that a manifest records, as values for JSON."""
        names = ("background", "fit", "split_by", "source", "path", "fraction", "valid_fraction")
        return {
            **{name: getattr(self.data, name) for name in (*names, "test_fraction")},
            "shard_rows": self.data.rows_a_shard,
            "seed": self.seed,
            "shape": list(self.data.shape),
            "splits": {split: self.count(split) for split in SPLITS},
            "classes": list(self.classes),
        }


def listed(
    data: DataConfig,
    seed: int,
    read: Callable[[Any], Rows],
    items: Mapping[Split, Any],
    stamp: str,
    classes: Sequence[str] = (),
) -> Source:
    """Makes a source from a list of all images, with shards of at most `data.rows_a_shard` rows.

    A small set is cut into smaller shards to use the cores of a machine, unless `data.shard_rows` is given.
    read: returns the rows of some items; must allow pickling. items: split -> what `read` needs for each
    image, as a list, or as a sequence with a method `take`. The training items are shuffled, so a shard mixes
    the classes, and `data.fraction` keeps the first ones. classes: names of the labels, in order, if any.
    """
    if not len(items["train"]):
        raise UserError(f"data.source {data.source} has no training image; check --data.path and fractions")
    chosen: dict[Split, Any] = {**items, "train": subset(items["train"], data.fraction, seed)}
    parts = list[Part]()
    for split, own in chosen.items():
        each = data.shard_rows or min(data.rows_a_shard, max(len(own) // PARTS, LEAST_ROWS))
        for start in range(0, len(own), each):
            parts.append(Part((split,), partial(_read_listed, read, split, own[start : start + each])))
    counts = {split: len(own) for split, own in chosen.items()}
    return Source(data, seed, parts, counts, stamp, classes, unique=True)


def _read_listed(
    read: Callable[[Any], Rows], split: Split, items: Any, wanted: Collection[Split]
) -> dict[Split, Rows]:
    return {split: read(items)} if split in wanted else {}


def of_files(
    data: DataConfig,
    seed: int,
    parts: Sequence[Part],
    counts: Mapping[Split, int | None],
    stamp: str,
    classes: Sequence[str] = (),
) -> Source:
    """Makes a source from files, which only workers read. Raises UserError without a training part."""
    if not any("train" in part.splits for part in parts):
        raise UserError(f"data.path {data.path} has no training shard of data.source {data.source}")
    known: Mapping[Split, int | None] = counts if data.fraction == 1 else {**counts, "train": None}
    return Source(data, seed, parts, known, stamp, classes)


def packed(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Cuts `sizes` into ranges (start, stop) with a sum of at most `most`. A larger size is a range alone."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > most:
            yield start, number
            start, total = number, 0
        total += size
    if sizes:
        yield start, len(sizes)


@dataclass(frozen=True)
class Canonical:
    """The canonical shards that the manifest of a folder lists."""

    filesystem: fs.FileSystem
    root: str
    manifest: Prepared

    @classmethod
    def at(cls, filesystem: fs.FileSystem, root: str) -> "Canonical | None":
        """The shards in `root`; None if no manifest lists any. Raises UserError on a damaged manifest."""
        manifest = read_prepared(filesystem, root)
        canonical = manifest is not None and manifest.format == "parquet"
        return cls(filesystem, root, manifest) if manifest is not None and canonical else None

    @property
    def shown(self) -> str:
        return display_path(self.filesystem, self.root)

    def source(self, data: DataConfig, seed: int) -> Source:
        """The source that reads these shards unchanged."""
        parts = [
            Part((split,), partial(_read_listed, self.reader, split, (file, self.manifest.sizes[file])))
            for split in SPLITS
            for file in self.manifest.files.get(split, ())
        ]
        stated = self.manifest
        counts: dict[Split, int | None] = {s: stated.splits[s] for s in SPLITS if s in stated.splits}
        return Source(data, seed, parts, counts, stated.digest, stated.classes, self, unique=True)

    @property
    def reader(self) -> "ShardReader":
        return ShardReader(self.filesystem, self.root)

    def read(self, file: str) -> Rows:
        """All rows of a file. Raises UserError if the file is damaged."""
        return self.reader((file, self.manifest.sizes[file]))


@dataclass(frozen=True)
class ShardReader:
    """Reads canonical shards. It lacks their manifest, which would add megabytes to the message of a task."""

    filesystem: fs.FileSystem
    root: str

    def __call__(self, file: tuple[str, int]) -> Rows:
        """All rows of a file. file: its path below `root`, and its bytes. Raises UserError if damaged."""
        path, size = file
        return rows_of(read_whole(f"{self.root}/{path}", self.filesystem, size))


class Layout(NamedTuple):
    """The split of each file, as its folder, its name or a manifest of `prepare` states it.

    files: a table as `listing` returns it. stated: path -> split, or None if nothing states it. own: the
    splits that the data define themselves. counts: see `Source`. prepared: the manifest, if there is one.
    """

    files: pa.Table
    stated: dict[str, Split | None]
    own: frozenset[str]
    counts: Mapping[Split, int | None] = {}
    prepared: Prepared | None = None

    @property
    def stamp(self) -> str:
        return stamp_of(self.files)


def file_splits(data: DataConfig, filesystem: fs.FileSystem, paths: list[str], root: str | None) -> Layout:
    """Takes the split of each file from the name of its folder, or else from the name of the file.

    A name such as Hugging Face's `test-00000-of-00001.parquet` states a split. Names are ignored if they
    leave no file for training, so that a single file is a whole data set. root: the folder of the files,
    which may hold the manifest of `prepare`; None for a single file or a pattern.
    Prepared data keep their splits. If they have no validation images, `data.valid_fraction` of the training
    images is held out by a hash of the id, and the numbers of images in these two splits are unknown. Raises
    UserError if the manifest states images of another shape than `data`.
    """
    above, names = below_root(paths, root)
    of_folders = [stated_split(posixpath.basename(posixpath.dirname(name))) for name in names]
    by_name = [own or named_split(path) for own, path in zip(of_folders, paths, strict=True)]
    no_training = all(split in ("valid", "test") for split in by_name)
    stated = dict(zip(paths, of_folders if no_training else by_name, strict=True))
    files = list_paths(filesystem, above, names)
    prepared = None if root is None else read_prepared(filesystem, root)
    if prepared is None:
        return Layout(files, stated, frozenset(s for s in stated.values() if s))
    require_shape(data, prepared)
    counts: dict[Split, int | None] = {split: prepared.splits.get(split) for split in SPLITS}
    if counts["valid"] or data.valid_fraction == 0:
        return Layout(files, stated, frozenset(SPLITS), counts, prepared)
    counts |= {"train": None, "valid": None}
    return Layout(files, stated, frozenset(SPLITS) - {"valid"}, counts, prepared)


def require_shape(data: DataConfig, prepared: Prepared) -> None:
    """Raises UserError if the images were prepared with another shape than `data` states."""
    if prepared.shape != data.shape:
        channels, *size = prepared.shape
        sizes = [f"of {c} channel(s) and {h}x{w} pixels" for c, h, w in (prepared.shape, data.shape)]
        raise UserError(
            f"data.path {data.path} was prepared with images {sizes[0]}, not {sizes[1]}; give "
            f"--data.image_size {size_of(*size)} --data.channels {channels}, or leave out both if no "
            "preset sets them"
        )


def open_source(data: DataConfig, seed: int, download: bool = True) -> Source:
    """Opens the data set that `data` names, with splits drawn by `seed`. Raises UserError if it is missing.

    Raises UserError, too, if its reader needs a library of the extra `data`.
    download: whether torchvision may download a known set that is missing.
    """
    known = SOURCES[data.source]
    require_extra(f"data.source {data.source}", "data", *known.needs)
    before = DOWNLOADS.set(download)
    try:
        source: Source = load(known.code)(data, seed)
    finally:
        DOWNLOADS.reset(before)
    return source
