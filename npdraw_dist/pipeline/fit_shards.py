"""The images that `fit` was given, as shards beside the run, where a later start finds them."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from npdraw_dist.core.errors import UserError
from npdraw_dist.core.lease import is_lease
from npdraw_dist.core.storage import PARTIAL, list_files, open_filesystem, read_bytes, write_bytes
from npdraw_dist.data.parquet import to_parquet
from npdraw_dist.data.rows import Rows
from npdraw_dist.pipeline.fit_images import picture_and_label

SHARD_ROWS = 2048
COUNT = "count.txt"  # beside the shards of a Ray Dataset: how many images they hold, and a hash of the first
PART = "part-"  # begins the names of these shards


def images_folder(storage: str, name: str) -> str:
    """Where the images of a run lie, beside it."""
    folder = f"{storage.rstrip('/')}/{name}-images"
    filesystem, root = open_filesystem(folder)
    return root if isinstance(filesystem, fs.LocalFileSystem) else folder


def write_shards(rows: Rows, held: Rows | None, classes: Sequence[str], storage: str, name: str) -> None:
    """Writes the images as shards to the `images_folder`. UserError: others lie there.

    held: images for validation, which then have a folder of their own.
    """
    folder = images_folder(storage, name)
    filesystem, root = open_filesystem(folder)
    folders = {root: rows} if held is None else {f"{root}/train": rows, f"{root}/valid": held}
    files = {
        f"{where}/images-{first // SHARD_ROWS:05d}.parquet": to_parquet(
            images.take(range(first, min(first + SHARD_ROWS, len(images)))), classes=classes
        )
        for where, images in folders.items()
        for first in range(0, len(images), SHARD_ROWS)
    }
    there = _whole_files(filesystem, root)
    if any(path not in files or not _same(read_bytes(filesystem, path), files[path]) for path in there):
        raise UserError(f"{folder} holds other images than these; take another name")
    for path in files.keys() - there:
        write_bytes(filesystem, path, files[path])


def _whole_files(filesystem: fs.FileSystem, root: str) -> set[str]:
    """The files below a folder, without its lease and those that a killed process was writing.

    The latter are removed.
    """
    found = {path for path, _ in list_files(filesystem, root) if not is_lease(path)}
    partial = {path for path in found if path.endswith(PARTIAL)}
    for path in partial:
        filesystem.delete_file(path)
    return found - partial


def _same(found: bytes, made: bytes) -> bool:
    """Whether two Parquet files hold the same rows and classes; another pyarrow writes other bytes."""
    if found == made:
        return True
    try:
        one, other = (pq.read_table(io.BytesIO(content)) for content in (found, made))
    except pa.ArrowException:
        return False
    return bool(one.equals(other, check_metadata=True))


def write_dataset(dataset: Any, first: Rows, count: int, held: Rows | None, storage: str, name: str) -> None:
    """Writes the pictures of a Ray Dataset as shards to the `images_folder`, on the cluster.

    first: its first pictures, by which a later start finds them there. Raises UserError if these, the number
    of all or those for validation are others.
    """
    from ray.data.datasource import FilenameProvider

    class InOrder(FilenameProvider):  # Ray's own names are random, and ids and splits follow from the names
        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            return f"{PART}{task_index:05d}.parquet"

    folder = images_folder(storage, name)
    filesystem, root = open_filesystem(folder)
    files = {} if held is None else {f"{root}/valid/images.parquet": to_parquet(held)}
    told = f"{first.known_labels().tolist()}{first.words}".encode()
    known = hashlib.sha256(first.images.tobytes() + told).hexdigest()
    files[f"{root}/{COUNT}"] = f"{count} {known}".encode()  # the last one: it says that all is written
    there = _whole_files(filesystem, root)
    beside = {path for path in there if not path.startswith(f"{root}/train/{PART}")}
    whole = f"{root}/{COUNT}" in beside  # else an interrupted write may have left some
    if beside - files.keys() or (whole and {p: read_bytes(filesystem, p) for p in beside} != files):
        raise UserError(f"{folder} holds other images than these; take another name")
    if not whole:
        encoded = dataset.map(_encoded)
        options = encoded.context.execution_options  # also those of the user's dataset
        before, options.preserve_order = options.preserve_order, True
        try:
            names = InOrder()
            encoded.write_parquet(
                f"{root}/train", filesystem=filesystem, filename_provider=names, mode="overwrite"
            )
        finally:
            options.preserve_order = before
        for path, content in files.items():
            write_bytes(filesystem, path, content)


def _encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a Ray Dataset as the source `parquet` takes it. Runs on any node.

    The run skips and lists what it cannot read; so a fault does not end the job.
    """
    try:
        picture, label = picture_and_label(row, "of the dataset")
        if isinstance(picture, Path):
            picture = picture.read_bytes()
    except (OSError, UserError):
        picture, label = b"", -1
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, "PNG")
        picture = file.getvalue()
    return {"image": picture, "label": label}
