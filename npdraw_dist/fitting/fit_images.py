"""Reads the images that a user passes to `fit`, with their labels.

Shapes: N images, C channels, H x W image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import (
    SUFFIXES,
    BadPicture,
    Frame,
    array_picture,
    is_grey,
    open_picture,
    pixel_fault,
    read_picture,
    to_image,
)
from npdraw_dist.core.vocabulary import MOST_CLASSES, VOCABULARIES, Vocabulary, as_python
from npdraw_dist.data.listing import list_tree, local_path, stamp_of
from npdraw_dist.data.readers.files import LOCAL, Files, by_split, pictures_in, read_files
from npdraw_dist.data.rows import Reject, RowBuilder, Rows
from npdraw_dist.data.splits import Split
from npdraw_dist.pipeline.trained_models import SourceModel
from npdraw_dist.system.errors import UserError

SMALL, LARGE = 32, 64  # the sides to which pictures of mixed or large sizes are resized
LARGEST_CANVAS, LARGEST_SCALE = 36, 4  # largest side of a canvas; largest ratio of image side to canvas side
KEYS = ("image", "img", "pixel_values")  # keys of a dict for its picture; the first that exists is used
SEEN = 1000  # number of rows of a Ray Dataset that decide sizes and settings
# Headers of up to HEADERS files of a folder decide the side; up to SAMPLED pictures decide the settings.
HEADERS, SAMPLED = 10_000, 256
SHOWN = 3  # largest number of skipped pictures that a warning names
UNSPLIT = DataConfig(valid_fraction=0.0, test_fraction=0.0)

Labels = Sequence[int | str | None] | None  # the class or the words of each image
Picture = Path | bytes | Image.Image


@dataclass(frozen=True)
class Folder:
    """A local folder of pictures, as the source `imagefolder` reads it.

    splits: the pictures by split. Names of the top folders, such as `valid`, state the split; without such
    names all pictures are for training. stamp: a hash that changes with the files.
    """

    root: str
    splits: Mapping[Split, Files]
    classes: tuple[str, ...]
    stamp: str

    @classmethod
    def at(cls, folder: str | Path) -> "Folder":
        """Lists a folder. Raises UserError if it is at a URI or has no picture for training."""
        if "://" in str(folder):
            raise UserError(
                f"images are at {folder}; copy them here, or give `npdraw train` that --data.path"
            )
        root = str(Path(folder).expanduser().absolute())
        listing = pictures_in(list_tree(LOCAL, root))
        splits, classes = by_split(listing["path"].combine_chunks(), UNSPLIT, 0)
        if not len(splits["train"]):
            raise UserError(f"{root} has no image ({', '.join(SUFFIXES)})")
        return cls(root, splits, tuple(classes), stamp_of(listing))

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def some(self, most: int) -> Files:
        """A seeded sample of at most `most` pictures for training."""
        files = self.splits["train"]
        order = np.random.default_rng(0).permutation(len(files))[:most]
        return files.take(np.sort(order))

    def read(self, frame: Frame, whole: bool) -> Rows:
        """Reads all pictures if `whole`, else a sample of at most SAMPLED training pictures."""
        files = self.splits.values() if whole else [self.some(SAMPLED)]
        return Rows.cat([read_files(LOCAL, self.root, frame, False, some) for some in files])


@dataclass(frozen=True)
class Looked:
    """Facts about the images of `fit`, found before training.

    pictures: the images that decide the settings (a sample of a folder, the first rows of a Ray Dataset, or
    all images). classes: names of the classes, if any. validation: the user's images for validation, if
    any. count: the number of all images. condition: `class` or `words`, the kind of the user's list of
    labels; None without a list. folder, dataset: the source, if it is a folder or a Ray Dataset.
    """

    pictures: Rows
    classes: tuple[str, ...]
    validation: Rows | None
    count: int
    condition: str | None = None
    folder: Folder | None = None
    dataset: Any = None


def look(
    images: tuple[Any, Labels], valid: tuple[Any, Labels], settings: Mapping[str, Mapping[str, Any]]
) -> Looked:
    """Reads the images that decide the settings, and the validation images.

    images, valid: (images, their labels) as passed to `fit`. settings: the user's settings by section. Raises
    UserError on images or labels that cannot be used.
    """
    (given, labels), data = images, settings.get("data", {})
    framed = {key: data[key] for key in ("image_size", "fit", "background") if key in data}
    if (model := settings.get("init", {}).get("model")) is not None:
        colours, side, _ = SourceModel.read(model).spec.image_shape
        framed = {"image_size": side, "channels": 3 if colours == 3 else None, **framed}
    folder = Folder.at(given) if isinstance(given, str | Path) else None
    dataset = given if hasattr(given, "take") and hasattr(given, "write_parquet") else None
    seen = folder or (given if dataset is None else dataset.take(SEEN))
    pictures = pictures_of(seen, **framed)
    classes, condition = () if folder is None else folder.classes, None
    if labels is not None:
        if dataset is not None:
            raise UserError("labels are for a list of images; a Ray Dataset has a column `label`")
        _require_list(seen)
        kind = settings.get("prior", {}).get("condition")
        column = None if kind is None else VOCABULARIES.get(kind, Vocabulary).column
        pictures, classes = labelled(pictures, labels, column)
        condition = "class" if classes else "words"
    validation = None
    if valid[0] is not None:
        validation = validation_rows(*valid, pictures, labels is not None, classes, framed)
    elif valid[1] is not None:
        raise UserError("valid_labels are of images for validation; give valid too")
    count = len(folder or pictures) if dataset is None else dataset.count()
    return Looked(pictures, classes, validation, count, condition, folder, dataset)


def pictures_of(
    images: Any,
    image_size: int | None = None,
    fit: Literal["pad", "crop"] = "pad",
    background: str = "white",
    channels: int | None = None,
    whole: bool = False,
) -> Rows:
    """Reads `images`, which are a folder, an array or tensor, a Ray Dataset, or any sequence of images.

    An array is (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1]. An item of a sequence,
    such as a torch Dataset, is a picture, a tuple (picture, label), or a dict with the picture under one of
    KEYS and the label under `label`. A picture is an array, a tensor, a PIL image, a path or an encoded
    picture. The label of a file in a folder is the number of its subfolder. Pictures are opened one at a
    time, once for their sizes and once for their pixels. Each is padded with `background`, or cropped to its
    centre, and resized; unreadable ones are rejected. image_size: if None, `_side` chooses it. channels: 1 or
    3; if None, 1 for grey pictures, else 3. whole: whether to read all pictures of a folder, not a sample.
    Raises UserError on other types, and if no picture can be read.
    """
    if isinstance(images, str | Path):
        images = Folder.at(images)
    if isinstance(images, Folder):
        headers = [local_path(images.root, name) for name, *_ in images.some(HEADERS)]
        found = [_header(picture) for picture in headers]
    else:
        items = _items_of(images)
        found = [_header(picture) for _, picture, _ in items()]
    kinds = {grey for _, grey in filter(None, found)}
    side = image_size or _side([size for size, _ in filter(None, found)])
    frame = Frame((channels or (1 if kinds == {True} else 3), side, side), background, fit)
    rows = images.read(frame, whole) if isinstance(images, Folder) else _read(items(), frame)
    if not len(rows):
        raise UserError(
            "there are no images to fit" + (f" ({reasons(rows.rejects)})" if rows.rejects else "")
        )
    # The header of a transparent picture does not show whether the picture is grey, but its pixels do.
    if channels is None and False not in kinds and (rows.images == rows.images[:, :1]).all():
        return replace(rows, images=np.ascontiguousarray(rows.images[:, :1]))
    return rows


def _read(items: Iterable[tuple[str, Picture, int]], frame: Frame) -> Rows:
    builder = RowBuilder(frame.shape)
    for name, picture, label in items:
        if isinstance(picture, Image.Image):
            builder.add(name, label, partial(to_image, picture, frame))
        else:
            builder.add(name, label, partial(read_picture, picture, frame))
    return builder.rows()


def _label(given: Any) -> Any:
    """Turns a whole float into int and NaN into None, since tables with missing labels store floats."""
    if not isinstance(given, float):
        return given
    if isnan(given):
        return None
    return int(given) if given.is_integer() else given


def labelled(
    pictures: Rows,
    labels: Sequence[int | str | None],
    column: str | None = None,
    classes: Sequence[str] = (),
) -> tuple[Rows, tuple[str, ...]]:
    """The pictures with their labels, and the names of the classes, which are empty if the labels are words.

    column: `label` or `words`, the column that the prior reads; None: names are words if more than half of
    them are distinct. classes: all classes, if they are known. An unknown label is -1 among whole numbers,
    None or NaN. Raises UserError if there are more or fewer labels than images, a class is not among
    `classes`, or no label is known.
    """
    given = [_label(label) for label in as_python(labels)]
    if all(label is None or type(label) is int for label in given):  # True and False are names of classes
        given = [None if label == -1 else label for label in given]
    if len(given) != len(pictures) + len(pictures.rejects):
        raise UserError(f"there are {len(given)} labels for {len(pictures) + len(pictures.rejects)} images")
    of_each = [given[int(name)] for name in pictures.ids]
    known = [label for label in given if label is not None]
    names = {str(label) for label in known}
    seldom_twice = bool(known) and isinstance(known[0], str) and 2 * len(names) > len(known)
    if column == "words" or (column is None and seldom_twice):
        return replace(pictures, words=["" if label is None else str(label) for label in of_each]), ()
    if classes:
        _require_classes(names, classes)
    elif not names:
        raise UserError("no label says what an image shows; give some, or leave labels out")
    elif all(type(label) is int and 0 <= label < MOST_CLASSES for label in known):
        classes = tuple(str(number) for number in range(1 + max(map(int, known))))
    else:
        classes = tuple(sorted(names))
    numbers = {name: number for number, name in enumerate(classes)}
    found = [-1 if label is None else numbers[str(label)] for label in of_each]
    return replace(pictures, labels=np.array(found, np.int64)), tuple(classes)


def validation_rows(
    images: Any,
    labels: Labels,
    training: Rows,
    has_labels: bool,
    classes: Sequence[str],
    framed: Mapping[str, Any],
) -> Rows:
    """Reads the images for validation, with the channels, side and classes of the training images.

    has_labels: whether the user gave a list of labels of the training images. Raises UserError if an image
    has a class that no training image has, or if labels are missing.
    """
    channels, side, _ = training.images.shape[1:]
    images = Folder.at(images) if isinstance(images, str | Path) else images
    same = {"image_size": side, "channels": channels}
    found = pictures_of(images, **{**framed, **same}, whole=True)
    names = images.classes if isinstance(images, Folder) else ()
    if labels is not None:
        _require_list(images)
        if not classes and training.words is None and any(isinstance(label, str) for label in labels):
            raise UserError("the images have no classes by name; give valid_labels as numbers, or labels too")
        found, _ = labelled(found, labels, "words" if training.words is not None else "label", classes)
    elif names and classes:
        _require_classes(names, classes)
        numbers = np.array([classes.index(name) for name in names], np.int64)
        given = found.known_labels()
        found = replace(found, labels=np.where(given >= 0, numbers[given], -1))
    elif has_labels:
        raise UserError("the images have labels, those for validation have none; give valid_labels")
    elif names:  # the training images have no classes
        found = replace(found, labels=None)
    return replace(found, ids=[f"valid/{name}" for name in found.ids])


def _require_list(images: Any) -> None:
    if isinstance(images, Folder):
        raise UserError("labels are for a list of images; those of a folder are its folders")


def _require_classes(names: Iterable[str], classes: Sequence[str]) -> None:
    if others := sorted(set(names) - set(classes)):
        raise UserError(f"images for validation have a class {others[0]!r}, which no other image has")


def reasons(skipped: Sequence[Reject]) -> str:
    shown = [f"{one.id}: {one.reason}" for one in skipped[:SHOWN]]
    return "; ".join([*shown, "..."] if len(skipped) > SHOWN else shown)


def _items_of(images: Any) -> Callable[[], Iterator[tuple[str, Picture, int]]]:
    """Returns a function that yields (id, picture, label) of all items at each call."""
    if isinstance(images, Mapping):  # for example, the splits of a Hugging Face data set
        raise UserError(f"images are a mapping of {', '.join(map(str, images))}; give one of these")
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim not in (3, 4):
        raise UserError(f"images are (N, H, W), (N, H, W, C) or (N, C, H, W), not {tuple(images.shape)}")
    if hasattr(images, "iter_rows"):  # a Ray Dataset of validation images
        rows = images.iter_rows
    elif hasattr(images, "__len__"):
        by_place = getattr(images, "iloc", images)  # `iloc` indexes the rows of pandas from 0
        rows = partial(map, by_place.__getitem__, range(len(images)))
    else:
        kind = type(images).__name__
        raise UserError(f"images are a folder, an array, a tensor or a sequence, not {kind}")
    return lambda: (
        (f"{number:08d}", *picture_and_label(value, f"{number:08d}")) for number, value in enumerate(rows())
    )


def picture_and_label(value: Any, name: str) -> tuple[Picture, int]:
    """The picture of an item (a path is not opened) and its label, -1 if unknown. name: for messages."""
    label: Any = -1
    if isinstance(value, tuple) and value:
        value, label = value[0], value[1] if len(value) > 1 else -1
    elif isinstance(value, Mapping):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise UserError(f"image {name} has none of {', '.join(KEYS)}, but {', '.join(map(str, value))}")
        value, label = value[key], value.get("label", -1)
    if isinstance(value, Mapping) and value.get("bytes") is not None:  # as Hugging Face encodes a picture
        value = value["bytes"]
    label = as_python(label)
    number = label if isinstance(label, int) else -1
    if isinstance(value, bytes | Image.Image):
        return value, number
    if isinstance(value, str | Path):
        return Path(value), number
    try:
        array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
    except ValueError:
        kind = type(value).__name__
        raise UserError(f"image {name} is a {kind} of several things; give (picture, label)") from None
    try:
        if (fault := pixel_fault(array)) is not None:
            raise BadPicture(fault)
        return array_picture(array), number
    except BadPicture as error:  # an error, since the caller can correct an array
        raise UserError(f"image {name} has {error}") from None


def _header(picture: Picture) -> tuple[tuple[int, int], bool | None] | None:
    """The size, and whether the picture is grey (None if only pixels show it). None if it is unreadable."""
    if isinstance(picture, Image.Image):
        return picture.size, is_grey(picture)
    try:
        with open_picture(picture) as opened:
            return opened.size, is_grey(opened)
    except BadPicture:
        return None


def canvas_scale(side: int) -> int | None:
    """Side of an image -> its ratio to the side of its canvas; None if no canvas is small enough."""
    scales = range(1, LARGEST_SCALE + 1)
    return next((n for n in scales if side % n == 0 and side // n <= LARGEST_CANVAS), None)


def _side(sizes: Sequence[tuple[int, int]]) -> int:
    """The pictures' own side if all are squares of one small size, else SMALL or LARGE by the median size."""
    sides = {side for size in sizes for side in size}
    if len(sides) == 1 and (side := sides.pop()) <= LARGE and canvas_scale(side):
        return side
    return SMALL if np.median([min(size) for size in sizes] or [0]) < 48 else LARGE
