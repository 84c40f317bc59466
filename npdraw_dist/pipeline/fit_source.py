"""The images that `fit` was given as a source, which the stage `data` reads like any other."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from pyarrow import fs

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, write_bytes
from npdraw_dist.data.listing import stamp_of
from npdraw_dist.data.parquet import digest_of, images_to_parquet
from npdraw_dist.data.readers.files import Files, by_split, read_files
from npdraw_dist.data.rows import Rows, frame_of
from npdraw_dist.data.shards import Source, listed, open_source
from npdraw_dist.data.splits import SPLITS, HashSplit, Split
from npdraw_dist.pipeline.data import Given
from npdraw_dist.pipeline.fit_images import Folder, picture_and_label
from npdraw_dist.pipeline.store import Store

RAW, PART = "given", "part-"  # folder of a run, and how the files begin, that a Ray Dataset is written to


def of_rows(rows: Rows, held: Rows | None, classes: Sequence[str], experiment: Experiment) -> Given:
    """Images in memory. held: those for validation; None: some of them by a hash of the id."""
    data, seed = experiment.data, experiment.seed
    rows = replace(rows, rejects=[])
    rule = HashSplit.of(data, seed, () if held is None else ("valid",))
    splits = [rule.split_of(name) for name in rows.ids]
    items = {s: rows.take([i for i, own in enumerate(splits) if own == s]) for s in SPLITS}
    return _listed(items if held is None else {**items, "valid": held}, classes, experiment, digest_of(rows))


def of_folder(folder: Folder, held: Rows | None, experiment: Experiment) -> Given:
    """The pictures in a folder, as of the source `imagefolder`. held: in place of those for validation."""
    data = experiment.data if held is None else experiment.data.model_copy(update={"valid_fraction": 0.0})
    files, classes = by_split(folder.listing["path"].combine_chunks(), data, experiment.seed)
    items: dict[Split, Files | Rows] = dict(files)
    read = partial(read_files, fs.LocalFileSystem(), folder.root, frame_of(data), False)
    stamp = int(stamp_of(folder.listing), 16)
    return _listed(items if held is None else {**items, "valid": held}, classes, experiment, stamp, read)


def _listed(
    items: Mapping[Split, Files | Rows],
    classes: Sequence[str],
    experiment: Experiment,
    stamp: int,
    read: Callable[[Files], Rows] | None = None,
) -> Given:
    """read: the rows of `Files`."""
    valid = items["valid"]
    own = digest_of(valid) if isinstance(valid, Rows) else 0
    known = f"{stamp:x}-{own:x}"
    source = listed(experiment.data, experiment.seed, partial(_read, read), items, known, classes)
    return Given({split: source.count(split) for split in SPLITS}, classes, known, lambda store: source)


def _read(read: Callable[[Files], Rows] | None, items: Files | Rows) -> Rows:
    if isinstance(items, Rows):
        return items
    assert read is not None
    return read(items)


def of_dataset(dataset: Any, first: Rows, count: int, held: Rows | None, experiment: Experiment) -> Given:
    """A Ray Dataset of `count` pictures; its cluster writes them to the run, from where they are read once.

    first: its first pictures, by which a later start knows it.
    """
    conditions = f"{first.known_labels().tolist()}{first.words}{count}".encode()
    digests = [digest_of(rows) for rows in (first, held) if rows is not None]
    stamp = hashlib.sha256(f"{digests}".encode() + conditions).hexdigest()
    counts: dict[Split, int | None] = {"train": None, "valid": None, "test": None}
    opened = partial(_written, dataset, held, experiment, stamp)
    return Given(counts, (), stamp, opened)


def _written(dataset: Any, held: Rows | None, experiment: Experiment, stamp: str, store: Store) -> Source:
    root, filesystem = store.path(RAW), store.filesystem
    write_dataset(dataset, filesystem, f"{root}/train")
    if held is not None:
        write_bytes(filesystem, f"{root}/valid/images.parquet", images_to_parquet(held, "valid"))
    data = experiment.data.model_copy(update={"source": "parquet", "path": display_path(filesystem, root)})
    source = open_source(data, experiment.seed)
    source.stamp = stamp
    return source


def write_dataset(dataset: Any, filesystem: fs.FileSystem, folder: str) -> None:
    """Writes the pictures of a Ray Dataset as Parquet files, in its order."""
    from ray.data.datasource import FilenameProvider

    class InOrder(FilenameProvider):  # Ray's own names are random, and ids and splits follow from the names
        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            return f"{PART}{task_index:05d}.parquet"

    encoded = dataset.map(_encoded)
    options = encoded.context.execution_options  # also those of the user's dataset
    before, options.preserve_order = options.preserve_order, True
    try:
        names = InOrder()
        encoded.write_parquet(folder, filesystem=filesystem, filename_provider=names, mode="overwrite")
    finally:
        options.preserve_order = before


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
