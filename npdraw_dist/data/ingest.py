"""Reads a data source once and writes its canonical shards, for the stage `data` and for `npdraw prepare`.

The folder of the shards also gets rejects.jsonl and, after all shards, manifest.json. Its file
.done/<shard>.ids holds the hashes of a shard's ids. Shapes: C channels, H x W pixels.
"""

import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from npdraw_dist.config.prepared import MAKER, Prepared
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.vocabulary import MOST_CLASSES
from npdraw_dist.data.parquet import digest_of, images_to_parquet
from npdraw_dist.data.repeats import Hash, hash_of, repeated_ids, write_hashes
from npdraw_dist.data.rows import RejectLimit, Rows, check_rejects, write_rejects
from npdraw_dist.data.shard_folder import DONE, ShardFacts, ShardFolder, Written
from npdraw_dist.data.shards import Piece, Source
from npdraw_dist.data.splits import SPLITS, Split
from npdraw_dist.distributed.start import ray_runs
from npdraw_dist.distributed.tasks import Pool, map_items
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.landmarks import Landmarks
from npdraw_dist.system.made_by import fingerprint

Format = Literal["parquet", "webdataset"]
Encode = Callable[[Rows, str, Sequence[str]], bytes]  # (rows, split, names of classes) -> shard's file
Show = Callable[[int, float], None]  # called with the number of images written so far, and images/s
OF_FILES = ("path", "splits", "classes")  # keys of `Source.facts` that describe files; `stamp` covers them


def encode_tar(rows: Rows, split: str, classes: Sequence[str]) -> bytes:
    """Encodes a WebDataset tar with the members png, cls, txt (words), and id if the key is not the id."""
    from webdataset.writer import TarWriter  # of the extra `data`

    buffer, labels, words = io.BytesIO(), rows.known_labels(), rows.words or [""] * len(rows)
    # Owners and times are fixed, so that the same rows give the same bytes. The PAX format allows long names.
    with TarWriter(buffer, user="", group="", mtime=0, encoder=False, format="PAX_FORMAT") as writer:
        for name, image, label, text in zip(rows.ids, rows.images, labels, words, strict=True):
            key = name.replace("%", "%25").replace(".", "%2E").replace("__", "%5F%5F")
            picture, png = image[0] if len(image) == 1 else image.transpose(1, 2, 0), io.BytesIO()
            Image.fromarray(np.ascontiguousarray(picture)).save(png, "PNG")
            sample: dict[str, Any] = {"__key__": key, "png": png.getvalue()}
            if label >= 0:
                sample["cls"] = str(label).encode()
            if text:
                sample["txt"] = text.encode()
            if key != name:
                sample["id"] = name.encode()
            writer.write(sample)
    return buffer.getvalue()


# Format -> the function that encodes a shard, and the suffix of its file.
FORMATS: dict[Format, tuple[Encode, str]] = {
    "parquet": (images_to_parquet, "parquet"),
    "webdataset": (encode_tar, "tar"),
}


def settings_print(source: Source, format: Format = "parquet") -> str:
    """The fingerprint of the settings that determine the content of the shards."""
    facts = source.facts()
    return fingerprint({"format": format} | {key: facts[key] for key in facts if key not in OF_FILES})


@dataclass(frozen=True)
class Ingest:
    """Writes the shards of a piece, one for each split in `splits`.

    seed: shuffles the rows of training shards, since data are often sorted, and a stream mixes only rows that
    it reads together. repeated: shard name -> hashes of ids that an earlier shard also has; unless it is
    empty, only these shards are written, without these ids. spent: shard name -> CPU seconds that an earlier
    write of the shard took.
    """

    folder: ShardFolder
    encode: Encode
    classes: tuple[str, ...]
    splits: tuple[Split, ...]
    seed: int
    repeated: Mapping[str, set[Hash]] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, piece: Piece) -> list[ShardFacts] | UserError:
        """Returns the error of an unreadable piece; raising it would stop the work on other pieces."""
        started, cpu_started, written = time.perf_counter(), time.thread_time(), list[ShardFacts]()
        splits = [s for s in self.splits if not self.repeated or piece.name(s) in self.repeated]
        try:
            found = piece.read(splits)
        except UserError as error:
            return error
        for split, rows in found.items():
            written.append(self._write(piece.name(split), split, rows, started, cpu_started))
            started, cpu_started = time.perf_counter(), time.thread_time()
        return written

    def _write(self, shard: str, split: Split, rows: Rows, started: float, cpu_started: float) -> ShardFacts:
        filesystem, root = self.folder.filesystem, self.folder.root
        if repeated := self.repeated.get(shard):
            rows = rows.without({name for name in rows.ids if hash_of(name) in repeated})
        if split == "train":
            rows = rows.take(np.random.default_rng(self.seed).permutation(len(rows)))
        content = self.encode(rows, split, self.classes) if len(rows) else b""
        write_hashes(filesystem, f"{root}/{DONE}/{shard}.ids", rows.ids)
        facts = ShardFacts(
            shard=shard,
            split=split,
            file=self.folder.path(shard, split) if len(rows) else None,
            rows=len(rows),
            bytes=len(content),
            digest=f"{digest_of(rows):032x}",
            rejects=[{"id": one.id, "reason": one.reason, "shard": shard} for one in rows.rejects],
            left_out=dict(rows.left_out),
            numbers={
                "classes": int(rows.known_labels().max(initial=-1)) + 1,
                "texts": len(rows.words or ()),
            },
            seconds=time.perf_counter() - started,
            core_seconds=self.spent.get(shard, 0.0) + time.thread_time() - cpu_started,
        )
        self.folder.write(facts, content)
        self.folder.finish([facts])
        return facts


def ingest(
    source: Source,
    data: DataConfig,
    folder: ShardFolder,
    seed: int,
    splits: Sequence[Split] = SPLITS,
    format: Format = "parquet",
    show: Show = lambda images, rate: None,
    across_splits: bool = False,
) -> Written:
    """Writes rejects.jsonl and the missing shards of `splits` to `folder`, which must be claimed.

    If an id occurs twice in a split, or with `across_splits` in two splits, only its first row is kept.
    Raises UserError as soon as too many rows are bad (`RejectLimit`). If a whole piece is unreadable, the
    other pieces are written before UserError is raised. Written shards stay.
    """
    encode, _ = FORMATS[format]
    write = Ingest(folder, encode, tuple(source.classes), tuple(splits), seed)
    pieces = [piece for piece in source.pieces() if set(piece.splits) & set(splits)]
    splits_of = {p.name(split): p.splits for p in pieces for split in p.splits if split in splits}
    done = {name: facts for name, facts in folder.done().items() if name in splits_of}
    limit = RejectLimit(data, [piece.splits for piece in pieces], source.count(*splits))
    todo, too_many = list[Piece](), False
    for piece in pieces:
        own = [done.get(piece.name(split)) for split in piece.splits if split in splits]
        if None in own:
            todo.append(piece)
        else:
            too_many = _count(limit, piece.splits, [facts for facts in own if facts is not None])
    old, errors, started, driver_s = limit.images, list[UserError](), time.perf_counter(), 0.0
    seen = [folder.landmarks()]
    if ray_runs() and (landmark := Landmarks.of_data(data.path)):
        seen.append(landmark)
    for result in map_items([] if too_many else todo, write, Pool(), seen):
        if isinstance(result, UserError):
            errors.append(result)
            continue
        done |= {facts.shard: facts for facts in result}
        driver_s += 0.0 if ray_runs() else sum(facts.core_seconds for facts in result)
        too_many = _count(limit, splits_of[result[0].shard], result)
        show(limit.images, (limit.images - old) / (time.perf_counter() - started))
        if too_many:
            break
    if too_many:
        _write_rejects(folder, done.values())
        check_rejects(limit.rejects, limit.rows, data)
    if errors:
        more = f" (and {len(errors) - 1} more pieces failed)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; what was written is kept, and the same command resumes")
    if not source.unique:
        driver_s += _reject_repeated(write, pieces, done, across_splits)
    shards = [done[name] for split in splits for name in splits_of if done[name].split == split]
    written = Written(shards, limit.images - old, tuple(splits), driver_s)
    _write_rejects(folder, written.shards)
    check_rejects(written.rejects, written.images + written.rejects, data)
    return written


def _count(limit: RejectLimit, splits: tuple[Split, ...], shards: Sequence[ShardFacts]) -> bool:
    return limit.add(splits, sum(f.rows for f in shards), sum(len(f.rejects) for f in shards))


def _reject_repeated(
    write: Ingest, pieces: Sequence[Piece], done: dict[str, ShardFacts], across_splits: bool
) -> float:
    """Rewrites each shard that repeats ids of an earlier shard, without these ids.

    across_splits: whether the earlier shard can be in another split. Returns this process's CPU seconds.
    """
    folder, driver_s = write.folder, 0.0
    repeated: dict[str, set[Hash]] = {}
    for group in [write.splits] if across_splits else [(split,) for split in write.splits]:
        own = sorted(
            (facts for facts in done.values() if facts.split in group),
            key=lambda facts: (SPLITS.index(facts.split), facts.shard),
        )
        in_order = [facts.shard for facts in own]
        ids = sum(facts.rows for facts in own)
        repeated |= repeated_ids(folder.filesystem, f"{folder.root}/{DONE}", in_order, ids)
    again = [piece for piece in pieces if any(piece.name(split) in repeated for split in piece.splits)]
    spent = {name: done[name].core_seconds for name in repeated}
    write = replace(write, repeated=repeated, spent=spent)
    for result in map_items(again, write, Pool(), [folder.landmarks()]):
        if isinstance(result, UserError):
            raise result
        done |= {facts.shard: facts for facts in result}
        driver_s += 0.0 if ray_runs() else sum(f.core_seconds - spent.get(f.shard, 0.0) for f in result)
    return driver_s


def manifest_of(
    source: Source, folder: ShardFolder, written: Written, data: DataConfig, format: Format = "parquet"
) -> dict[str, Any]:
    """The manifest of canonical shards, as values for JSON; `config.prepared` reads it."""
    count = max((f.numbers.get("classes", 0) for f in written.shards if f.split == "train"), default=0)
    numbered = [str(number) for number in range(int(count))] if count <= MOST_CLASSES else []
    manifest = {
        "maker": MAKER,
        "shards": format,
        "made_from": folder.made_from,
        "images": written.images,
        "splits": written.splits,
        "rejected": written.rejects,
        "left_out": written.left_out,
        "digests": written.digests,
        "shape": list(data.shape),
        "classes": list(source.classes) or numbered,
        "has_words": any(facts.numbers.get("texts") for facts in written.shards),
        "source": source.facts(),
        "stamp": source.stamp,
        "files": written.files(),
    }
    return {**manifest, "digest": Prepared.of(manifest).digest}


def _write_rejects(folder: ShardFolder, shards: Iterable[ShardFacts]) -> None:
    lines = [line for facts in shards for line in facts.rejects]
    write_rejects(folder.filesystem, folder.root, lines)
