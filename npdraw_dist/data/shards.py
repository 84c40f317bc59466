"""Sources of images as shards, the unit of work of every stage: small picklable descriptions of some images.

Each shard costs the driver requests, memory and a message, so many small ones are read as one.
"""

import hashlib
import json
import math
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from pyarrow import fs

from npdraw_dist.config.prepared import MANIFEST, Prepared, read_prepared
from npdraw_dist.config.registry import SOURCES, load
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import StorageFailed, UserError
from npdraw_dist.core.storage import in_threads
from npdraw_dist.data.identity import Identity, InputFile, Inputs, compare
from npdraw_dist.data.readers.known import DOWNLOADS
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.splits import SPLITS, Split, named_split, stated_split, subset

READERS = 8  # threads that read the parts of a shard
FEW = 1024  # shards of a split that stay as they are: enough for the cores of a cluster, and little work
MOST_BYTES = 64 << 20  # images of a merged shard
PARTS, LEAST_ROWS = 8, 2048  # shards of a small set of single files, and the least rows of one


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a split. name: safe as a file name, as `train-00003`. reads: each gives some of its rows."""

    name: str
    split: str
    reads: tuple[Callable[[], Rows], ...]

    def read(self) -> Rows:
        """The images, and the rows that are skipped. Raises UserError if the whole shard is unreadable."""
        first, *others = self.reads
        return Rows.cat([first(), *(read() for read in others)]) if others else first()


class Source:
    """A data set as lists of shards.

    reads: the rows of each split, in a fixed order. counts: images of a split before any is rejected; None,
    or not there, if only reading would tell. inputs: the files that hold images, labels and splits. facts:
    what else a manifest records, as plain JSON.
    """

    def __init__(
        self,
        data: DataConfig,
        seed: int,
        reads: Mapping[Split, Sequence[Callable[[], Rows]]],
        counts: Mapping[Split, int | None],
        inputs: Inputs,
        **facts: Any,
    ) -> None:
        self._data, self._seed, self._reads, self._counts = data, seed, reads, counts
        self.inputs, self._facts = inputs, facts

    def shards(self, split: Split) -> list[Shard]:
        """All shards of a split, in a fixed order. A name means the same rows always."""
        reads = self._reads[split]
        # A shard of unknown length counts as `data.rows_a_shard` images.
        most = MOST_BYTES // (self._data.rows_a_shard * math.prod(self._data.shape))
        each = max(min(len(reads) // FEW, most), 1)
        ending = f"x{each}" if each > 1 else ""
        return [
            Shard(f"{split}-{number:05d}{ending}", split, tuple(reads[start : start + each]))
            for number, start in enumerate(range(0, len(reads), each))
        ]

    def count(self, *splits: Split) -> int | None:
        """Images of the splits, or of all, before any is rejected; None if only reading would tell."""
        counts = [self._counts.get(split) for split in splits or SPLITS]
        return None if None in counts else sum(count or 0 for count in counts)

    def facts(self) -> dict[str, Any]:
        """What a manifest records, as plain JSON."""
        names = ("background", "fit", "split_by", "source", "path", "fraction", "valid_fraction")
        return {
            **{name: getattr(self._data, name) for name in (*names, "test_fraction")},
            "shard_rows": self._data.rows_a_shard,
            "seed": self._seed,
            "shape": list(self._data.shape),
            "splits": {split: self.count(split) for split in SPLITS},
            **self._facts,
        }


def listed(
    data: DataConfig,
    seed: int,
    read: Callable[[Sequence[Any]], Rows],
    items: Mapping[Split, Sequence[Any]],
    inputs: Inputs,
    classes: Sequence[str] = (),
) -> Source:
    """A source whose images are all known: exact splits, shards of `data.rows_a_shard` rows or less.

    A small set is cut for the cores of a machine, unless `data.shard_rows` says how.
    items: what `read`, which is picklable, needs for each image of a split. `data.fraction` takes the first
    of the shuffled training items, so subsets are nested and a shard mixes the classes. classes: names of the
    labels, in order, if they have any.
    """
    if not items["train"]:
        raise UserError(f"data.source {data.source} has no training image; see --data.path and fractions")
    chosen: dict[Split, Sequence[Any]] = {**items, "train": subset(items["train"], data.fraction, seed)}
    reads: dict[Split, list[Callable[[], Rows]]] = {}
    for split, own in chosen.items():
        each = data.shard_rows or min(data.rows_a_shard, max(len(own) // PARTS, LEAST_ROWS))
        reads[split] = [partial(read, own[start : start + each]) for start in range(0, len(own), each)]
    counts = {split: len(own) for split, own in chosen.items()}
    return Source(data, seed, reads, counts, inputs, classes=list(classes))


class FilePart(NamedTuple):
    """A file, or a part of one. read: gives its rows of one of `splits`; picklable. size: bytes or rows."""

    splits: tuple[Split, ...]
    read: Callable[[Split], Rows]
    size: int


def of_files(
    data: DataConfig,
    seed: int,
    parts: Sequence[FilePart],
    counts: Mapping[Split, int | None],
    inputs: Inputs,
    classes: Sequence[str] = (),
) -> Source:
    """A source of files that only the workers read: one shard for each part of a file and split."""
    if not any("train" in part.splits for part in parts):
        raise UserError(f"data.path {data.path} has no training shard of data.source {data.source}")
    reads = {split: [partial(part.read, split) for part in parts if split in part.splits] for split in SPLITS}
    known: Mapping[Split, int | None] = counts if data.fraction == 1 else {**counts, "train": None}
    size = sum(part.size for part in parts)
    return Source(data, seed, reads, known, inputs, pieces=len(parts), size=size, classes=list(classes))


def join_small(parts: Sequence[FilePart], rows: int) -> list[FilePart]:
    """Joins parts that follow each other, have the same splits and at most `rows` rows together."""
    joined = []
    for splits, group in groupby(parts, key=attrgetter("splits")):
        own = list(group)
        for start, stop in packed([part.size for part in own], rows):
            some = own[start:stop]
            reads = tuple(part.read for part in some)
            read: Callable[[Split], Rows] = partial(_read_at_once, reads) if len(reads) > 1 else reads[0]
            joined.append(FilePart(splits, read, sum(part.size for part in some)))
    return joined


def packed(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) of consecutive sizes that are at most `most` together; a larger one is alone."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > most:
            yield start, number
            start, total = number, 0
        total += size
    if sizes:
        yield start, len(sizes)


def _read_at_once(reads: Sequence[Callable[[Split], Rows]], split: Split) -> Rows:
    return Rows.cat(in_threads(lambda read: read(split), reads, READERS))


class Layout(NamedTuple):
    """The splits that folders and a manifest of `npdraw prepare` state. own: those of some file."""

    inputs: Inputs
    stated: dict[str, Split | None]
    own: frozenset[str]
    counts: Mapping[Split, int | None] = {}
    prepared: Prepared | None = None


def file_splits(data: DataConfig, filesystem: fs.FileSystem, paths: list[str], root: str | None) -> Layout:
    """The split of each file is that of its folder below `root`, which may hold the manifest of `prepare`.

    root: None of a single file or a pattern, whose folders are those below the folder of all files. In
    another folder its name states it, as Hugging Face's `test-00000-of-00001.parquet` does; but not where no
    file would be left for training: then they are data as a whole, such as a single file is.
    Prepared data keep their splits; but of those without validation images, `data.valid_fraction` of the
    training images is held out by the hash of the id, and neither is counted. Raises UserError if the
    manifest states images of another shape than `data`.
    """
    above = posixpath.commonpath([posixpath.dirname(path) for path in paths]) if root is None else root
    names = tuple(path[len(above) + 1 :] for path in paths)
    folders = [name.split("/")[-2] if "/" in name else None for name in names]
    of_folders = [stated_split(folder) for folder in folders]
    by_name = [own or named_split(path) for own, path in zip(of_folders, paths, strict=True)]
    no_training = all(split in ("valid", "test") for split in by_name)
    stated = dict(zip(paths, of_folders if no_training else by_name, strict=True))
    own = frozenset(s for s in stated.values() if s)
    if root is None:
        return Layout(Inputs.of_paths(filesystem, paths), stated, own)
    prepared = read_prepared(filesystem, root)
    if prepared is None:
        return Layout(Inputs(filesystem, root, names, is_folder=True), stated, own)
    channels, side, _ = prepared.shape
    if prepared.shape != data.shape:
        sizes = [f"of {c} channel(s) and {h}x{w} pixels" for c, h, w in (prepared.shape, data.shape)]
        raise UserError(
            f"data.path {data.path} was prepared with images {sizes[0]}, not {sizes[1]}; give "
            f"--data.image_size {side} --data.channels {channels}, or leave out both where no preset states "
            "them"
        )
    # The rest of the manifest, such as where the images came from, may change.
    content = json.dumps({"shape": prepared.shape, "splits": prepared.splits}, sort_keys=True).encode()
    of_images = InputFile(MANIFEST, len(content), None, hashlib.sha256(content).hexdigest())
    inputs = Inputs(filesystem, root, names, True, prepared.checksums, (of_images,))
    counts: dict[Split, int | None] = {split: prepared.splits[split] for split in SPLITS}
    own = frozenset(SPLITS)
    if not counts["valid"] and data.valid_fraction > 0:
        own -= {"valid"}
        counts |= {"train": None, "valid": None}
    return Layout(inputs, stated, own, counts, prepared)


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

    Where they cannot be seen, no shard is given up: StorageFailed, or that error.
    """
    failed: UserError | None = None
    try:
        yield
    except UserError as error:
        failed = error
    try:
        now = open_source(data, seed).inputs
    except UserError as error:
        unseen = f"whether the data changed while {reader} read them cannot be seen ({error})"
        raise failed or StorageFailed(f"{unseen}; the same command goes on") from None
    if changes := str(compare(before, now)):
        raise DataChanged(
            f"the data changed while {reader} read them: {changes}; nothing of what it read is kept: "
            "give the same command again once the data stay as they are"
        )
    if failed is not None:
        raise failed
