"""Turns the images of `fit` into a source that the stage `data` reads like any other source."""

import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from npdraw_dist.config.schema import Experiment
from npdraw_dist.core.pictures import Frame
from npdraw_dist.data.parquet import digest_of, images_to_parquet
from npdraw_dist.data.readers.files import LOCAL, Files, read_files
from npdraw_dist.data.rows import Rows, frame_of
from npdraw_dist.data.shards import Source, listed, open_source
from npdraw_dist.data.splits import SPLITS, HashSplit, Split, unit_hash
from npdraw_dist.fitting.fit_images import Looked, picture_and_label
from npdraw_dist.pipeline.data import Given
from npdraw_dist.pipeline.store import Store
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import display_path, write_bytes

RAW = "given"  # subfolder of the run, to which a Ray Dataset is written

Images = Files | Rows


def given(looked: Looked, experiment: Experiment) -> Given:
    """Makes the source of the images in `looked`. Raises UserError as `split_train` does."""
    if looked.dataset is not None:
        return _of_dataset(looked, experiment)
    folder, validation, data = looked.folder, looked.validation, experiment.data
    items: dict[Split, Images] = {"train": looked.pictures} if folder is None else {**folder.splits}
    if validation is not None:
        items["valid"] = validation
    stated = [split for split in items if len(items[split])]
    items |= split_train(items["train"], looked.pictures, experiment, stated)
    stamp = f"{digest_of(looked.pictures):x}" if folder is None else folder.stamp
    valid_stamp = 0 if validation is None else digest_of(validation)
    stamp = hashlib.sha256(f"{stamp} {valid_stamp:x} {looked.classes}".encode()).hexdigest()
    read = partial(_read, "" if folder is None else folder.root, frame_of(data))
    source = listed(data, experiment.seed, read, items, stamp, looked.classes)
    counts = {split: source.count(split) for split in SPLITS}
    return Given(counts, looked.classes, stamp, lambda store: source)


def split_train(
    items: Images, seen: Rows, experiment: Experiment, stated: Collection[Split] = ()
) -> dict[Split, Images]:
    """Splits images by a hash of their id into training images and the splits that are not `stated`.

    If the hash leaves training or validation without an image, the validation split gets the images of `seen`
    with the smallest hashes, and all their copies in `seen`. seen: the images of `items` that have been
    read. stated: splits with their own images. Raises UserError if no training image is left.
    """
    rule, seed = HashSplit.of(experiment.data, experiment.seed, stated), experiment.seed

    def names() -> Any:
        return items.ids if isinstance(items, Rows) else (item.path for item in items)

    splits = np.fromiter((SPLITS.index(rule.split_of(name)) for name in names()), np.int8, len(items))
    train, valid = SPLITS.index("train"), SPLITS.index("valid")
    if rule.valid and not {train, valid} <= set(splits.tolist()):
        splits[splits == valid] = train
        place = {name: number for number, name in enumerate(names())}
        copies: dict[bytes, list[int]] = {}  # pixels of an image -> its positions in `items`
        for name, image in sorted(
            zip(seen.ids, seen.images, strict=True), key=lambda pair: unit_hash(seed, "split", pair[0])
        ):
            copies.setdefault(image.tobytes(), []).append(place[name])
        for places in copies.values():
            if np.count_nonzero(splits == valid) >= max(1, round(rule.valid * len(items))):
                break
            splits[places] = valid
        if all((splits[places] == valid).all() for places in copies.values()):
            raise UserError("fit needs two different pictures or more, since one is held out for validation")
    found: dict[Split, Images] = {}
    for number, split in enumerate(SPLITS):
        if split == "train" or split not in stated:
            part = items.take(np.flatnonzero(splits == number))
            if isinstance(part, Rows) and split != "train":
                part = replace(part, rejects=[])  # rejects are listed with the training images
            found[split] = part
    return found


def _read(root: str, frame: Frame, items: Images) -> Rows:
    return items if isinstance(items, Rows) else read_files(LOCAL, root, frame, False, items)


def _of_dataset(looked: Looked, experiment: Experiment) -> Given:
    """The source of a Ray Dataset. Ray writes the dataset to the run, where the stage `data` reads it once.

    The stamp depends on the number of images, the first images and the validation images.
    """
    first, validation = looked.pictures, looked.validation
    conditions = f"{first.known_labels().tolist()}{first.words}{looked.count}".encode()
    digests = [digest_of(rows) for rows in (first, validation) if rows is not None]
    stamp = hashlib.sha256(f"{digests}".encode() + conditions).hexdigest()
    counts: dict[Split, int | None] = dict.fromkeys(SPLITS)
    opened = partial(_written, looked, experiment, stamp)
    return Given(counts, (), stamp, opened, lambda store: store.remove(RAW))


def _written(looked: Looked, experiment: Experiment, stamp: str, store: Store) -> Source:
    from npdraw_dist.distributed.datasets import write_dataset  # imports Ray

    root, filesystem = store.path(RAW), store.filesystem
    write_dataset(looked.dataset, _encoded, filesystem, f"{root}/train")
    if looked.validation is not None:
        content = images_to_parquet(looked.validation, "valid")
        write_bytes(filesystem, f"{root}/valid/images.parquet", content)
    data = experiment.data.model_copy(update={"source": "parquet", "path": display_path(filesystem, root)})
    source = open_source(data, experiment.seed)
    source.stamp = stamp
    return source


def _encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a row of a Ray Dataset to the format of the source `parquet`. Runs on any node.

    An unreadable picture becomes empty bytes, so that the run skips the picture and lists it as rejected.
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
