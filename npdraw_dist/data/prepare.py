"""Writes any source once as sharded Parquet or WebDataset tars, which read back with their splits.

<out>/<split>/<shard>.parquet or .tar, <out>/.done/<shard>.json (written after the file itself, so
that a killed run takes up at the first shard without one), rejects.jsonl, and at last manifest.json.
Shapes: N images, C channels, H x W pixels.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs
from webdataset.writer import TarWriter

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.fingerprint import fingerprint
from npdraw_dist.core.storage import PART, list_files, open_filesystem, read_bytes, write_beside, write_text
from npdraw_dist.data.ids import repeated_ids
from npdraw_dist.data.parses import ROW_GROUP, image_column
from npdraw_dist.data.readers.prepared import MAKER, MANIFEST
from npdraw_dist.data.rows import Reject, Rows
from npdraw_dist.data.shards import RejectLimit, Shard, check_rejects
from npdraw_dist.data.sources import open_source
from npdraw_dist.data.splits import SPLITS

Format = Literal["parquet", "webdataset"]
SUFFIX: dict[str, str] = {"parquet": "parquet", "webdataset": "tar"}
DONE, REJECTS = ".done", "rejects.jsonl"
# Called with shards done and shards in all.
Show = Callable[[int, int], None]


def to_parquet(rows: Rows) -> bytes:
    """Columns id, image (fixed-shape tensor) and label (-1 unknown), zstd."""
    labels = np.full(len(rows), -1, np.int64) if rows.labels is None else rows.labels
    table = pa.table(
        {"id": pa.array(rows.ids, pa.string()), "image": image_column(rows.images), "label": labels}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP, compression="zstd")
    return buffer.getvalue()


def _png(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) -> PNG, without loss."""
    buffer = io.BytesIO()
    picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def to_tar(rows: Rows) -> bytes:
    """WebDataset samples png and cls; a key ends at its first dot, so other ids are kept in a member `id`."""
    buffer = io.BytesIO()
    # Fixed names and times, and the tar format that takes long names: same rows, same bytes.
    with TarWriter(buffer, user="", group="", mtime=0, encoder=False, format="PAX_FORMAT") as writer:
        for i, name in enumerate(rows.ids):
            key = name.replace("%", "%25").replace(".", "%2E").replace("__", "%5F%5F")
            sample: dict[str, Any] = {"__key__": key, "png": _png(rows.images[i])}
            if rows.labels is not None and rows.labels[i] >= 0:
                sample["cls"] = str(rows.labels[i]).encode()
            if key != name:
                sample["id"] = name.encode()
            writer.write(sample)
    return buffer.getvalue()


ENCODERS: dict[str, Callable[[Rows], bytes]] = {"parquet": to_parquet, "webdataset": to_tar}


@dataclass(frozen=True)
class Writer:
    """Reads a shard, writes its file, then its sidecar.

    exclude: shard name -> ids that an earlier shard has already.
    """

    filesystem: fs.FileSystem
    root: str
    form: Format
    made_from: str
    exclude: dict[str, set[str]]

    def __call__(self, row: dict[str, Shard]) -> dict[str, Any]:
        """Returns split, rows and rejects, and the error of a shard that is unreadable as a whole."""
        shard = row["shard"]
        try:
            rows, rejects = self.write(shard)
        except UserError as error:  # so that the other shards are written all the same
            return {"split": shard.split, "rows": 0, "rejects": 0, "error": str(error)}
        return {"split": shard.split, "rows": rows, "rejects": rejects, "error": ""}

    def write(self, shard: Shard) -> tuple[int, int]:
        """Returns the number of rows and of rejects."""
        rows = _without(shard.read(), self.exclude.get(shard.name, set()))
        name = f"{shard.split}/{shard.name}.{SUFFIX[self.form]}"
        content = ENCODERS[self.form](rows) if len(rows) else b""
        if content:
            write_beside(self.filesystem, f"{self.root}/{name}", lambda stream: stream.write(content))
        facts = {
            "made_from": self.made_from,
            "shard": shard.name,
            "split": shard.split,
            "file": name if content else None,
            "rows": len(rows),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "ids": rows.ids,
            "rejects": [{"id": reject.id, "reason": reject.reason} for reject in rows.rejects],
        }
        write_text(self.filesystem, f"{self.root}/{DONE}/{shard.name}.json", json.dumps(facts))
        return len(rows), len(rows.rejects)


def _without(rows: Rows, ids: set[str]) -> Rows:
    """`rows` less those whose id another shard has; these are rejected."""
    if not ids:
        return rows
    kept = rows.take([i for i, name in enumerate(rows.ids) if name not in ids])
    repeated = [Reject(name, "duplicate id") for name in rows.ids if name in ids]
    return replace(kept, rejects=[*rows.rejects, *repeated])


class Prepared:
    """The folder that is being written."""

    def __init__(self, out: str, form: Format, made_from: str) -> None:
        self.filesystem, self.root = open_filesystem(out)
        self.out, self.form, self.made_from = out, form, made_from

    def claim(self) -> None:
        """Makes the folder; raises UserError where it holds something else, or cannot be written."""
        marker = f"{self.root}/{DONE}/source.json"
        try:
            files = list_files(self.filesystem, self.root)
            if marker in [path for path, _ in files]:
                if json.loads(read_bytes(self.filesystem, marker)) != {"made_from": self.made_from}:
                    raise UserError(
                        f"--out {self.out} was prepared from another source or config; take another"
                    )
            elif files:
                raise UserError(f"--out {self.out} is not empty; take another, or delete what is there")
            else:
                write_text(self.filesystem, marker, json.dumps({"made_from": self.made_from}))
            for path, _ in files:
                if path.endswith(PART):  # of a killed run
                    self.filesystem.delete_file(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot write to --out {self.out}: {error}") from None

    def done(self, shards: Sequence[Shard]) -> dict[str, dict[str, Any]]:
        """shard name -> facts of those that are whole: sidecar there, and the file of the size it states."""
        sizes = dict(list_files(self.filesystem, self.root))
        found = {}
        for shard in shards:
            sidecar = f"{self.root}/{DONE}/{shard.name}.json"
            if sidecar not in sizes:
                continue
            facts = json.loads(read_bytes(self.filesystem, sidecar))
            if facts["file"] is None or sizes.get(f"{self.root}/{facts['file']}") == facts["bytes"]:
                found[shard.name] = facts
        return found

    def write(
        self, shards: Sequence[Shard], exclude: dict[str, set[str]], show: Show, limit: RejectLimit | None
    ) -> bool:
        """Writes all `shards` by Ray tasks; raises UserError after the rest is written where one failed.

        True where it stopped, as `limit` says that too many rows are bad.
        """
        if not shards:
            return False
        writer = Writer(self.filesystem, self.root, self.form, self.made_from, exclude)
        items = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        errors = []
        for number, row in enumerate(items.map(writer.__call__).iter_rows(), 1):
            show(number, len(shards))
            if row["error"]:
                errors.append(row["error"])
            elif limit is not None and limit.add(row["split"], row["rows"], row["rejects"]):
                return True
        if errors:
            more = f" (and {len(errors) - 1} more shards failed)" if len(errors) > 1 else ""
            raise UserError(f"{errors[0]}{more}; what is written stays, and the same command goes on")
        return False


def prepare(
    data: DataConfig, seed: int, out_uri: str, format: Format, show: Show = lambda done, total: None
) -> dict[str, Any]:
    """Writes the source that `data` names to `out_uri`, a folder or URI; returns the manifest.

    Resumes what a killed run left. Raises UserError on a source or folder that cannot be used, and
    on more bad rows than data.max_bad_fraction, as soon as that is clear; what is written stays. Ray
    must run.
    """
    source = open_source(data, seed)
    shards = [shard for split in SPLITS for shard in source.shards(split)]
    names = [shard.name for shard in shards]
    facts = source.facts()
    target = Prepared(out_uri, format, fingerprint({"data": facts, "format": format}))
    target.claim()
    done = target.done(shards)
    counts = [source.count(split) for split in SPLITS]
    total = None if None in counts else sum(count or 0 for count in counts)
    limit, too_many = RejectLimit(data, shards, total), False
    for shard_facts in done.values():
        too_many = limit.add(shard_facts["split"], shard_facts["rows"], len(shard_facts["rejects"]))
    todo = [] if too_many else [shard for shard in shards if shard.name not in done]
    too_many = target.write(todo, {}, show, limit) or too_many
    done = target.done(shards)
    if too_many:
        _write_rejects(target, [done[name] for name in names if name in done])
        check_rejects(limit.rejects, limit.rows, data)
    assert len(done) == len(shards)
    if repeated := repeated_ids(names, lambda name: list(done[name]["ids"])):
        target.write([shard for shard in shards if shard.name in repeated], repeated, show, None)
        done = target.done(shards)
    return _finish(target, [done[name] for name in names], data, facts)


def _write_rejects(target: Prepared, done: Sequence[dict[str, Any]]) -> int:
    """Writes rejects.jsonl of the shards that are done; returns the number of rejects."""
    rejects = [{**reject, "shard": item["shard"]} for item in done for reject in item["rejects"]]
    text = "".join(json.dumps(reject) + "\n" for reject in rejects)
    write_text(target.filesystem, f"{target.root}/{REJECTS}", text)
    return len(rejects)


def _finish(
    target: Prepared, done: Sequence[dict[str, Any]], data: DataConfig, source: dict[str, Any]
) -> dict[str, Any]:
    """Writes rejects.jsonl and, unless too many rows are bad, manifest.json."""
    rejects = _write_rejects(target, done)
    rows = sum(item["rows"] for item in done)
    check_rejects(rejects, rows + rejects, data)
    manifest = {
        "maker": MAKER,
        "format": target.form,
        "made_from": target.made_from,
        "count": rows,
        "shape": list(data.shape),
        "splits": {split: sum(item["rows"] for item in done if item["split"] == split) for split in SPLITS},
        "rejects": rejects,
        "files": [
            {key: item[key] for key in ("file", "split", "rows", "bytes", "sha256")}
            for item in done
            if item["file"] is not None
        ],
        "data": source,
    }
    write_text(target.filesystem, f"{target.root}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")
    return manifest
