"""Writes any source once as sharded Parquet or WebDataset tars, which read back with their splits.

<out>/<split>/<shard>.parquet or .tar, rejects.jsonl, and manifest.json once all is written.
Shapes: C channels, H x W pixels.
"""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from PIL import Image
from pyarrow import fs
from webdataset.writer import TarWriter

from npdraw_dist.config.prepared import MAKER, MANIFEST
from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import Lease, is_lease
from npdraw_dist.core.made_by import fingerprint
from npdraw_dist.core.storage import (
    list_files,
    open_filesystem,
    require_apart,
    require_writable,
    write_text,
    writing,
)
from npdraw_dist.data.identity import Identity, compare, identify
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import Encoded, ShardFolder, ShardWriter, Show, write_shards
from npdraw_dist.data.shards import DataChanged, Source, open_source, unchanged

Format = Literal["parquet", "webdataset"]
ROW_GROUP = 1024  # rows, stated by the manifest for all files
OF_THE_FILES = ("path", "splits", "pieces", "size", "classes")  # facts of a source that its files decide


def encode_parquet(rows: Rows) -> Encoded:
    """Columns id, image (fixed-shape tensor), label (-1 unknown) and, if there are any, words; zstd."""
    return Encoded(to_parquet(rows, row_group=ROW_GROUP))


def encode_tar(rows: Rows) -> Encoded:
    """WebDataset samples png, cls, txt (words). A key ends at its first dot: other ids are a member `id`."""
    buffer, labels, words = io.BytesIO(), rows.known_labels(), rows.words or [""] * len(rows)
    # Fixed names and times, and the tar format that takes long names: same rows, same bytes.
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
    return Encoded(buffer.getvalue())


# Format -> what makes its files, and their suffix.
ENCODERS: dict[Format, tuple[Callable[[Rows], Encoded], str]] = {
    "parquet": (encode_parquet, "parquet"),
    "webdataset": (encode_tar, "tar"),
}


def prepare(
    data: DataConfig, seed: int, out: str, format: Format, show: Show = lambda images, rate: None
) -> dict[str, Any]:
    """Writes the source that `data` names to `out`, a folder or URI; returns the manifest.

    Resumes what a killed run left, also if the data were moved since. Raises UserError on a source or folder
    that cannot be used, on data that changed, and as `write_shards` does.
    """
    source = open_source(data, seed)
    facts = source.facts()
    filesystem, root = open_filesystem(out)
    with Lease(filesystem, root, f"--out {out}") as held:
        folder, found = _claim(out, source, format)
        # No image of the test split may also be a training image, whatever its shard.
        writer = ShardWriter(folder, *ENCODERS[format], across_splits=True)
        before = folder.done()
        try:
            with unchanged(data, seed, found, "prepare"):
                written = write_shards(writer, source, data, show)
        except DataChanged:
            if folder.done() != before:  # which shards were read before the change is not known
                folder.drop()
                folder.claim()  # for the data as they are then
            raise
        manifest = {
            "maker": MAKER,
            "format": format,
            "made_from": folder.made_from,
            "inputs": found.digest,
            "data": facts,
            **({"row_group": ROW_GROUP} if format == "parquet" else {}),
            "count": written.images,
            "shape": list(data.shape),
            "splits": written.splits,
            "rejects": written.rejects,
            "left_out": written.left_out,
            "files": [
                {key: getattr(shard, key) for key in ("file", "split", "rows", "bytes", "sha256")}
                for shard in written.shards
                if shard.file is not None
            ],
        }
        held.check()
        write_text(filesystem, f"{root}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")
    return manifest


def require_own(data: DataConfig, source: Source, out: str, format: Format) -> None:
    """Raises UserError if the folder `out` holds something else or cannot be written."""
    require_writable(out, folder=True)
    if data.source == format and data.path is not None:  # it reads all files of the kind that are written
        require_apart(data.path, *open_filesystem(out), "what is prepared", "--out")
    _begun(out, source, format)


def _begun(out: str, source: Source, format: Format) -> ShardFolder:
    """The folder, for data of these settings. Raises UserError if it holds something else."""
    facts = source.facts()
    settings = {"format": format} | {key: facts[key] for key in facts if key not in OF_THE_FILES}
    filesystem, root = open_filesystem(out)
    folder = ShardFolder(filesystem, root, fingerprint(settings))
    owner = folder.owner()
    if owner is None and not all(is_lease(path) for path, _ in list_files(filesystem, root)):
        raise UserError(f"--out {out} is not empty; take another, or delete what is there")
    if owner is not None and owner.partition("/")[0] != folder.made_from:
        raise UserError(f"--out {out} was prepared from another source or config; take another")
    return folder


def _claim(out: str, source: Source, format: Format) -> tuple[ShardFolder, Identity]:
    """The folder, and the files of the source as they are now.

    Raises UserError if the folder holds something else or cannot be written, and if it was begun with data
    that changed; then an unfinished folder is written from the start once they are back.
    """
    with writing(out):
        folder = _begun(out, source, format)
        recorded = folder.inputs()
    if recorded is None:
        found = identify(source.inputs)
    else:
        comparison = compare(recorded, source.inputs)
        if comparison.changes:
            if folder.filesystem.get_file_info(f"{folder.root}/{MANIFEST}").type != fs.FileType.File:
                folder.drop()  # a shard may be of the data that were changed
            raise UserError(
                f"the data of --out {out} changed: {comparison}; take another --out, or put the data back"
            )
        found = comparison.identity
    folder = replace(folder, made_from=f"{folder.made_from}/{found.digest}")
    with writing(out):
        folder.claim(found)
    return folder, found
