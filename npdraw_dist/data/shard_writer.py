"""Writes every shard of a source as one file, resumably: for `npdraw prepare` and the stage `parse`.

<root>/<split>/<shard>.<suffix>, <root>/.done/<shard>.ids (hashes of its ids), <root>/.done/<shard>.json (the
sidecar, written after both, so that a killed run goes on at the first shard without one),
<root>/.done/source.json (what the shards are made from), <root>/rejects.jsonl. The driver reads and writes
nothing that grows with images.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.landmarks import Landmarks
from npdraw_dist.core.storage import PARTIAL, in_threads, list_files, read_bytes, write_bytes, write_text
from npdraw_dist.data.identity import Identity, InputFile
from npdraw_dist.data.repeats import Hash, RepeatFinder, hash_of, ranges_of, write_hashes
from npdraw_dist.data.rows import (
    RejectLimit,
    RejectLine,
    Rows,
    check_rejects,
    reject_lines,
    write_rejects,
)
from npdraw_dist.data.shards import Shard, Source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import Pool, map_items

DONE, MARKER = ".done", "source.json"

# Called with the images written so far, and images/s.
Show = Callable[[int, float], None]


@dataclass(frozen=True)
class ShardFacts:
    """What a sidecar says of a shard. file: None if the shard has no good row. left_out: as in `Rows`.

    seconds: to read, encode and write it; core_seconds: CPU seconds of the thread meanwhile. numbers: what
    the encoder states, such as the sum of errors.
    """

    shard: str
    split: str
    file: str | None
    rows: int
    bytes: int
    sha256: str
    rejects: list[RejectLine]
    seconds: float
    numbers: dict[str, float]
    core_seconds: float
    left_out: dict[str, int]


class Encoded(NamedTuple):
    """The content of a shard's file, and numbers for its sidecar."""

    content: bytes
    numbers: Mapping[str, float] = {}


@dataclass(frozen=True)
class ShardFolder:
    """The folder of the shards. made_from: fingerprint of all that decides their content."""

    filesystem: fs.FileSystem
    root: str
    made_from: str

    def _marker(self) -> dict[str, Any]:
        """Empty if the folder was not claimed."""
        marker = f"{self.root}/{DONE}/{MARKER}"
        if self.filesystem.get_file_info(marker).type != fs.FileType.File:
            return {}
        try:
            found = dict(json.loads(read_bytes(self.filesystem, marker)))
            return found if found["made_from"] else {}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{marker} is damaged ({error}); delete the folder {self.root}") from None

    def owner(self) -> str | None:
        """The fingerprint that the folder was claimed for; None if it was not."""
        return str(found["made_from"]) if (found := self._marker()) else None

    def inputs(self) -> Identity | None:
        """The data that the folder was claimed for; None if the marker does not name their files."""
        found = self._marker()
        if "files" not in found:
            return None
        return Identity(tuple(InputFile(**file) for file in found["files"]), found["root"])

    def claim(self, inputs: Identity | None = None) -> None:
        """Marks the folder as ours, and removes the partial files of a killed run. inputs: for the marker."""
        marker: dict[str, Any] = {"made_from": self.made_from}
        if inputs is not None:
            marker |= {"root": inputs.root, "files": [vars(file) for file in inputs.files]}
        if self._marker() != marker:
            write_text(self.filesystem, f"{self.root}/{DONE}/{MARKER}", json.dumps(marker))
        for path, _ in list_files(self.filesystem, self.root):
            if path.endswith(PARTIAL):
                self.filesystem.delete_file(path)

    def landmarks(self) -> Landmarks | None:
        """Files of a claimed folder that other nodes look for; None if it is at a URI."""
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            return None
        marker = f"{DONE}/{MARKER}"
        return Landmarks.of("the folder", "--storage or --out", self.root, [marker], with_times=True)

    def drop(self) -> None:
        """Removes all shards and their sidecars."""
        for folder in (DONE, *SPLITS):
            for path, _ in list_files(self.filesystem, f"{self.root}/{folder}"):
                if path != f"{self.root}/{DONE}/{MARKER}":
                    self.filesystem.delete_file(path)

    def done(self) -> dict[str, ShardFacts]:
        """shard name -> facts of the whole shards: with a sidecar, a file of its size, and their ids."""
        start, sizes = f"{self.root}/{DONE}/", dict(list_files(self.filesystem, self.root))
        sidecars = [p for p in sizes if p.startswith(start) and p.endswith(".json") and p != start + MARKER]
        texts = in_threads(lambda path: read_bytes(self.filesystem, path), sidecars)
        found = [ShardFacts(**json.loads(text)) for text in texts]

        def is_whole(facts: ShardFacts) -> bool:
            whole = sizes.get(f"{self.root}/{facts.file}") == facts.bytes
            return facts.file is None or (whole and f"{start}{facts.shard}.ids" in sizes)

        return {facts.shard: facts for facts in found if is_whole(facts)}


@dataclass(frozen=True)
class ShardWriter:
    """Reads a shard, writes its file and the hashes of its ids, then its sidecar.

    encode: makes files of this suffix. repeated: shard name -> hashes of ids that an earlier shard has too;
    these are rejected. spent: shard name -> CPU seconds of writing it before. across_splits: an id may come
    in one split only. mixed: seed of a random order of the rows of training shards; None keeps their order.
    """

    folder: ShardFolder
    encode: Callable[[Rows], Encoded]
    suffix: str = "parquet"
    repeated: dict[str, set[Hash]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    across_splits: bool = False
    mixed: int | None = None

    def __call__(self, shard: Shard) -> ShardFacts:
        """Raises UserError if the shard is unreadable as a whole."""
        started, cpu_started = time.perf_counter(), time.thread_time()
        filesystem, root = self.folder.filesystem, self.folder.root
        rows, repeated = shard.read(), self.repeated.get(shard.name, set())
        if repeated:
            rows = rows.without({name for name in rows.ids if hash_of(name) in repeated})
        if self.mixed is not None and shard.split == "train":
            rows = rows.take(np.random.default_rng(self.mixed).permutation(len(rows)))
        encoded, file = Encoded(b""), f"{shard.split}/{shard.name}.{self.suffix}"
        if len(rows):
            encoded = self.encode(rows)
            write_bytes(filesystem, f"{root}/{file}", encoded.content)
            write_hashes(filesystem, f"{root}/{DONE}/{shard.name}.ids", rows.ids)
        elif repeated:  # all its rows were written before
            with contextlib.suppress(FileNotFoundError):  # a worker died after this line
                filesystem.delete_file(f"{root}/{file}")
        facts = ShardFacts(
            shard=shard.name,
            split=shard.split,
            file=file if len(rows) else None,
            rows=len(rows),
            bytes=len(encoded.content),
            sha256=hashlib.sha256(encoded.content).hexdigest(),
            rejects=reject_lines(rows.rejects, shard.name),
            seconds=time.perf_counter() - started,
            numbers=dict(encoded.numbers),
            core_seconds=self.spent.get(shard.name, 0.0) + time.thread_time() - cpu_started,
            left_out=dict(rows.left_out),
        )
        write_text(filesystem, f"{root}/{DONE}/{shard.name}.json", json.dumps(asdict(facts)))
        return facts


@dataclass(frozen=True)
class Written:
    """All shards of the splits `of`, in the order of the source. new: images that this call wrote.

    here_s: CPU seconds of them that this process spent itself, without Ray.
    """

    shards: list[ShardFacts]
    new: int
    of: tuple[Split, ...]
    here_s: float = 0.0

    @property
    def images(self) -> int:
        return sum(facts.rows for facts in self.shards)

    @property
    def rejects(self) -> int:
        return sum(len(facts.rejects) for facts in self.shards)

    @property
    def left_out(self) -> dict[str, int]:
        """How many images the source left out, by reason."""
        return dict(sorted(sum((Counter(facts.left_out) for facts in self.shards), Counter()).items()))

    @property
    def splits(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(f.rows for f in self.shards if f.split == split) for split in self.of}


def write_shards(
    writer: ShardWriter,
    source: Source,
    data: DataConfig,
    show: Show,
    pool: Pool | None = None,
    splits: Sequence[Split] = SPLITS,
) -> Written:
    """Writes the shards of `splits` that are not done, in a claimed folder, and rejects.jsonl.

    An id that comes again in a split, or with `writer.across_splits` in any, stays where it came first.
    Raises UserError on more bad rows than data.max_bad_fraction, as soon as that is clear, and after all
    other shards are written if one is unreadable as a whole; what is written stays.
    """
    folder = writer.folder
    shards = [shard for split in splits for shard in source.shards(split)]
    names = [shard.name for shard in shards]
    limit, too_many = RejectLimit(data, [shard.split for shard in shards], source.count(*splits)), False
    found = folder.done()
    done = {name: found[name] for name in names if name in found}
    for facts in done.values():
        too_many = limit.add(facts.split, facts.rows, len(facts.rejects))
    todo = [] if too_many else [shard for shard in shards if shard.name not in done]
    old, errors, started, here_s = limit.images, [], time.perf_counter(), 0.0
    folders = [*source.inputs.folders(), folder.landmarks()]
    for result in map_items(todo, partial(_facts_or_error, writer), pool, folders):
        if isinstance(result, UserError):
            errors.append(result)
            continue
        done[result.shard] = result
        here_s += 0.0 if ray_runs() else result.core_seconds
        too_many = limit.add(result.split, result.rows, len(result.rejects))
        show(limit.images, (limit.images - old) / (time.perf_counter() - started))
        if too_many:
            break
    if too_many:
        _write_rejects(folder, done.values())
        check_rejects(limit.rejects, limit.rows, data)
    if errors:
        more = f" (and {len(errors) - 1} more shards failed)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; what is written stays, and the same command goes on")
    repeated = repeated_in(folder, [done[name] for name in names], writer.across_splits, folders)
    again = [shard for shard in shards if shard.name in repeated]
    spent = {name: done[name].core_seconds for name in repeated}
    mended = replace(writer, repeated=repeated, spent=spent)
    for facts in map_items(again, mended, pool, folders):
        done[facts.shard] = facts
        here_s += 0.0 if ray_runs() else facts.core_seconds - spent[facts.shard]
    written = Written([done[name] for name in names], limit.images - old, tuple(splits), here_s)
    _write_rejects(folder, written.shards)
    check_rejects(written.rejects, written.images + written.rejects, data)
    return written


def _facts_or_error(writer: ShardWriter, shard: Shard) -> ShardFacts | UserError:
    """So that the other shards go on."""
    try:
        return writer(shard)
    except UserError as error:
        return error


def repeated_in(
    folder: ShardFolder,
    shards: Sequence[ShardFacts],
    across_splits: bool,
    folders: Sequence[Landmarks | None] = (),
) -> dict[str, set[Hash]]:
    """shard name -> hashes of ids that an earlier shard, of its split or of any, has too."""
    with_rows = [facts for facts in shards if facts.file is not None]
    found: dict[str, set[Hash]] = {}
    for split in SPLITS[:1] if across_splits else SPLITS:
        part = [facts for facts in with_rows if across_splits or facts.split == split]
        names = tuple(facts.shard for facts in part)
        finder = RepeatFinder(folder.filesystem, f"{folder.root}/{DONE}", names)
        ranges = ranges_of(sum(facts.rows for facts in part))
        # Few ids are looked at here.
        results = map_items(ranges, finder, folders=folders) if len(ranges) > 1 else map(finder, ranges)
        for result in results:
            for name, hashes in result.items():
                found.setdefault(name, set()).update(hashes)
    return found


def _write_rejects(folder: ShardFolder, shards: Iterable[ShardFacts]) -> None:
    lines = [line for facts in shards for line in facts.rejects]
    write_rejects(folder.filesystem, folder.root, lines)
