"""Writes any source once as sharded Parquet or WebDataset tars, which read back with their splits.

<out>/<split>/<shard>.parquet or .tar, rejects.jsonl, and manifest.json once all is written.
Shapes: C channels, H x W pixels.
"""

import io
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from webdataset.writer import TarWriter

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.fingerprint import fingerprint
from npdraw_dist.core.lease import Lease, is_lease
from npdraw_dist.core.storage import list_files, open_filesystem, write_text
from npdraw_dist.data.parses import to_parquet
from npdraw_dist.data.readers.prepared import MAKER, MANIFEST
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shard_writer import (
    Encoded,
    Encoder,
    ShardFolder,
    ShardWriter,
    Show,
    Written,
    write_shards,
)
from npdraw_dist.data.sources import open_source

Format = Literal["parquet", "webdataset"]


def _png(image: NDArray[np.uint8]) -> bytes:
    """(C, H, W) -> PNG, without loss."""
    buffer = io.BytesIO()
    picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class ParquetEncoder:
    """Columns id, image (fixed-shape tensor) and label (-1 unknown), zstd."""

    suffix = "parquet"

    def __call__(self, rows: Rows) -> Encoded:
        return Encoded(to_parquet(rows))


@dataclass(frozen=True)
class TarEncoder:
    """WebDataset samples png and cls. A key ends at its first dot, so other ids are a member `id`."""

    suffix = "tar"

    def __call__(self, rows: Rows) -> Encoded:
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
        return Encoded(buffer.getvalue())


ENCODERS: dict[Format, Encoder] = {"parquet": ParquetEncoder(), "webdataset": TarEncoder()}


def prepare(
    data: DataConfig, seed: int, out: str, format: Format, show: Show = lambda images, rate: None
) -> dict[str, Any]:
    """Writes the source that `data` names to `out`, a folder or URI; returns the manifest.

    Resumes what a killed run left. Raises UserError on a source or folder that cannot be used, and
    on more bad rows than data.max_bad_fraction, as soon as that is clear; what is written stays. Ray
    must run.
    """
    source = open_source(data, seed)
    facts = source.facts()
    folder = ShardFolder(*open_filesystem(out), fingerprint({"data": facts, "format": format}))
    with Lease(folder.filesystem, folder.root, f"--out {out}") as held:
        _claim(folder, out)
        # No image of the test split may also be a training image, whatever its shard.
        writer = ShardWriter(folder, ENCODERS[format])
        written = write_shards(writer, source, data, show, across_splits=True)
        manifest = _manifest(written, format, folder.made_from, data.shape, facts)
        held.check()
        write_text(folder.filesystem, f"{folder.root}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")
    return manifest


def _manifest(
    written: Written, format: Format, made_from: str, shape: tuple[int, int, int], facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "maker": MAKER,
        "format": format,
        "made_from": made_from,
        "count": written.images,
        "shape": list(shape),
        "splits": written.splits,
        "rejects": written.rejects,
        "files": [
            {key: asdict(shard)[key] for key in ("file", "split", "rows", "bytes", "sha256")}
            for shard in written.shards
            if shard.file is not None
        ],
        "data": facts,
    }


def _claim(folder: ShardFolder, out: str) -> None:
    """Raises UserError if the folder holds something else, or cannot be written."""
    try:
        owner, files = folder.owner(), list_files(folder.filesystem, folder.root)
        if owner is None and not all(is_lease(path) for path, _ in files):
            raise UserError(f"--out {out} is not empty; take another, or delete what is there")
        if owner not in (None, folder.made_from):
            raise UserError(f"--out {out} was prepared from another source or config; take another")
        folder.claim()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot write to --out {out}: {error}") from None
