"""The images that `fit` was given as a source, which the stage `data` reads like any other."""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.storage import display_path, write_bytes
from npdraw_dist.data.parquet import digest_of, images_to_parquet
from npdraw_dist.data.readers.files import LOCAL, Files, read_files
from npdraw_dist.data.rows import Rows, frame_of
from npdraw_dist.data.shards import Source, listed, open_source
from npdraw_dist.data.splits import SPLITS, HashSplit, Split, unit_hash
from npdraw_dist.pipeline.data import Given
from npdraw_dist.pipeline.fit_images import Looked, picture_and_label
from npdraw_dist.pipeline.store import Store

RAW = "given"  # folder of a run that a Ray Dataset is written to


def given(images: Any, looked: Looked, experiment: Experiment) -> Given:
    """What the stage `data` reads of `images`, that `fit` was given and has `looked` at."""
    if looked.is_dataset:
        return _of_dataset(images, looked, experiment)
    if looked.is_partial:
        return _of_folder(looked, experiment)
    return _of_rows(looked, experiment)


def _of_rows(looked: Looked, experiment: Experiment) -> Given:
    """Images in memory. Those for validation are given, else some by a hash of the id."""
    rows, validation = looked.pictures, looked.validation
    stamp = f"{digest_of(rows):x}"
    if validation is None:
        rows, few = split_few(rows, experiment)
        validation = None if few is None else replace(few, rejects=[])
    rule = HashSplit.of(experiment.data, experiment.seed, () if validation is None else ("valid",))
    splits = [rule.split_of(name) for name in rows.ids]
    items = {s: rows.take([i for i, own in enumerate(splits) if own == s]) for s in SPLITS}
    items |= {s: replace(items[s], rejects=[]) for s in SPLITS if s != "train"}
    return _listed(items if validation is None else {**items, "valid": validation}, looked, experiment, stamp)


def _of_folder(looked: Looked, experiment: Experiment) -> Given:
    """The pictures in a large folder, which only the stage reads."""
    folder, validation, data = looked.seen, looked.validation, experiment.data
    files, seed = folder.files, experiment.seed
    rule = HashSplit.of(data, seed, () if validation is None else ("valid",))
    splits = np.fromiter((SPLITS.index(rule.split_of(item.path)) for item in files), np.int8, len(files))
    valid = SPLITS.index("valid")
    if validation is None and data.valid_fraction > 0 and valid not in splits:
        most = max(1, round(data.valid_fraction * len(files)))
        hashes = [unit_hash(seed, "split", item.path) for item in files]
        splits[np.argsort(hashes)[:most]] = valid
    items: dict[Split, Files | Rows] = {
        s: files.take(np.flatnonzero(splits == i)) for i, s in enumerate(SPLITS)
    }
    read = partial(read_files, LOCAL, folder.root, frame_of(data), False)
    return _listed(
        items if validation is None else {**items, "valid": validation},
        looked,
        experiment,
        folder.stamp,
        read,
    )


def split_few(rows: Rows, experiment: Experiment) -> tuple[Rows, Rows | None]:
    """The images for training and for validation, if they are so few that no hash of an id holds one out.

    Else all, and None. Those with the smallest hashes are held out, and copies of them. UserError: there is
    one picture.
    """
    data, seed = experiment.data, experiment.seed
    rule = HashSplit.of(data, seed, ())
    found = {rule.split_of(name) for name in rows.ids}
    if data.valid_fraction == 0 or {"train", "valid"} <= found:
        return rows, None
    pixels = [image.tobytes() for image in rows.images]
    most, validation = max(1, round(data.valid_fraction * len(rows))), list[int]()
    for one in sorted(range(len(rows)), key=lambda number: unit_hash(seed, "split", rows.ids[number])):
        if len(validation) < most and one not in validation:
            validation += [number for number, other in enumerate(pixels) if other == pixels[one]]
    kept = sorted(set(range(len(rows))) - set(validation))
    if not kept:
        raise UserError("fit needs two different pictures or more, since one is held out for validation")
    return rows.take(kept), rows.take(validation)


def _listed(
    items: Mapping[Split, Files | Rows],
    looked: Looked,
    experiment: Experiment,
    stamp: str,
    read: Callable[[Files], Rows] | None = None,
) -> Given:
    """stamp: of the images but those for validation. read: the rows of `Files`."""
    validation = 0 if looked.validation is None else digest_of(looked.validation)
    known = hashlib.sha256(f"{stamp} {validation:x} {looked.classes}".encode()).hexdigest()
    source = listed(experiment.data, experiment.seed, partial(_read, read), items, known, looked.classes)
    counts = {split: source.count(split) for split in SPLITS}
    return Given(counts, looked.classes, known, lambda store: source)


def _read(read: Callable[[Files], Rows] | None, items: Files | Rows) -> Rows:
    if isinstance(items, Rows):
        return items
    assert read is not None
    return read(items)


def _of_dataset(dataset: Any, looked: Looked, experiment: Experiment) -> Given:
    """A Ray Dataset; its cluster writes it to the run, from where the stage reads it once.

    A later start knows it by its number of images and by the first ones.
    """
    first, validation = looked.pictures, looked.validation
    conditions = f"{first.known_labels().tolist()}{first.words}{looked.count}".encode()
    digests = [digest_of(rows) for rows in (first, validation) if rows is not None]
    stamp = hashlib.sha256(f"{digests}".encode() + conditions).hexdigest()
    counts: dict[Split, int | None] = {"train": None, "valid": None, "test": None}
    opened = partial(_written, dataset, validation, experiment, stamp)
    return Given(counts, (), stamp, opened, lambda store: store.remove(RAW))


def _written(
    dataset: Any, validation: Rows | None, experiment: Experiment, stamp: str, store: Store
) -> Source:
    from npdraw_dist.distributed.datasets import write_dataset  # it imports Ray

    root, filesystem = store.path(RAW), store.filesystem
    write_dataset(dataset, _encoded, filesystem, f"{root}/train")
    if validation is not None:
        write_bytes(filesystem, f"{root}/valid/images.parquet", images_to_parquet(validation, "valid"))
    data = experiment.data.model_copy(update={"source": "parquet", "path": display_path(filesystem, root)})
    source = open_source(data, experiment.seed)
    source.stamp = stamp
    return source


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
