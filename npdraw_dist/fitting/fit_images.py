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

from npdraw_dist.config.section import sides, size_of
from npdraw_dist.core.pictures import (
    BadPicture,
    Frame,
    array_picture,
    is_grey,
    open_picture,
    pixel_fault,
    read_picture,
    to_image,
    upright_size,
)
from npdraw_dist.core.vocabulary import MOST_CLASSES, VOCABULARIES, Vocabulary, as_python
from npdraw_dist.data.listing import local_path
from npdraw_dist.data.rows import Reject, RowBuilder, Rows
from npdraw_dist.fitting.labelled_folder import FOLDERS, LEAST, Folder, FolderLabels
from npdraw_dist.pipeline.trained_models import SourceModel
from npdraw_dist.system.errors import UserError

SMALL, LARGE = 32, 64  # the longer sides to which pictures of mixed or large sizes are resized
# Pictures keep their shape if nine of ten have the same, up to ALIKE, and it is no square and no strip.
ALIKE, MOST_ODD, ALL_BUT_A_TENTH = 1.1, 3.0, (0.05, 0.5, 0.95)
STEP = 4  # the shorter side of images is a multiple of this, so that a canvas fits it, px
LARGEST_CANVAS, LARGEST_SCALE = 36, 4  # largest side of a canvas; largest ratio of image side to canvas side
KEYS = ("image", "img", "pixel_values")  # keys of a dict for its picture; the first that exists is used
SEEN = 1000  # number of rows of a Ray Dataset that decide sizes and settings
# Headers of up to HEADERS files of a folder decide the side; up to SAMPLED pictures decide the settings.
HEADERS, SAMPLED = 10_000, 256
SHOWN = 3  # largest number of skipped pictures that a warning names

NONE = "none"  # of `labels`: no classes, no words
# The class or the words of each image; of a folder, where they are (`labelled_folder.FolderLabels`).
Labels = Sequence[int | str | None] | str | Path | None
Picture = Path | bytes | Image.Image


@dataclass(frozen=True)
class Looked:
    """Facts about the images of `fit`, found before training.

    pictures: the images that decide the settings (a sample of a folder, the first rows of a Ray Dataset, or
    all images). classes: names of the classes, if any. validation: the user's images for validation, if
    any. count: the number of all images. condition: `class` or `words`, the kind of the labels; None without
    labels. folder, dataset: the source, if it is a folder or a Ray Dataset. labels: those of a folder.
    """

    pictures: Rows
    classes: tuple[str, ...]
    validation: Rows | None
    count: int
    condition: str | None = None
    folder: Folder | None = None
    dataset: Any = None
    labels: FolderLabels | None = None


def look(
    images: tuple[Any, Labels],
    valid: tuple[Any, Labels],
    settings: Mapping[str, Mapping[str, Any]],
    by_folders: bool = False,
) -> Looked:
    """Reads the images that decide the settings, and the validation images.

    images, valid: (images, their labels) as passed to `fit`. settings: the user's settings by section.
    by_folders: whether folders are classes if no labels are given and two folders have LEAST pictures. Raises
    UserError on images or labels that cannot be used.
    """
    (given, labels), data = images, settings.get("data", {})
    framed = {key: data[key] for key in ("image_size", "fit", "background") if key in data}
    if (model := settings.get("init", {}).get("model")) is not None:
        colours, *size = SourceModel.read(model).spec.image_shape
        framed = {"image_size": size_of(*size), "channels": 3 if colours == 3 else None, **framed}
    kind, found = settings.get("prior", {}).get("condition"), None
    folder = Folder.at(given) if isinstance(given, str | Path) else None
    if folder is not None:
        folder, found = _with_labels(folder, labels, kind, by_folders)
        labels = None
    dataset = given if hasattr(given, "take") and hasattr(given, "write_parquet") else None
    seen = folder or (given if dataset is None else dataset.take(SEEN))
    pictures = pictures_of(seen, **framed)
    classes, condition = () if folder is None else folder.classes, None if found is None else found.condition
    if labels is not None:
        if dataset is not None:
            raise UserError(
                "labels are for a list of images; put those of a Ray Dataset in its column `label`"
            )
        labels = _require_list(labels)
        column = None if kind is None else VOCABULARIES.get(kind, Vocabulary).column
        pictures, classes = labelled(pictures, labels, column)
        condition = "class" if classes else "words"
    validation = None
    if valid[0] is not None:
        others, own = valid
        if isinstance(others, str | Path):
            others, own = _folder_like(others, own, found), None
        validation = validation_rows(others, own, pictures, labels is not None, classes, framed)
    elif valid[1] is not None:
        raise UserError("valid_labels are the labels of valid; give valid too")
    count = len(folder or pictures) if dataset is None else dataset.count()
    return Looked(pictures, classes, validation, count, condition, folder, dataset, found)


def _with_labels(
    folder: Folder, labels: Labels, kind: str | None, by_folders: bool
) -> tuple[Folder, FolderLabels | None]:
    """The folder with its labels, if any. kind: `prior.condition`, if given. by_folders: see `look`."""
    if labels is None and kind == "class":
        labels = FOLDERS
    if labels is None and by_folders:
        sizes = np.bincount(folder.splits["train"].labels + 1)[1:]
        labels = FOLDERS if np.count_nonzero(sizes >= LEAST) > 1 else None
    if labels is None:
        return folder, None
    if labels == NONE:
        return folder.unlabelled(), None
    if not isinstance(labels, str | Path):
        raise UserError("labels is a list, but images is a folder; give folders, names or a CSV file")
    found = FolderLabels.found(folder, labels)
    return found.of(folder), found


def _folder_like(images: str | Path, labels: Labels, training: FolderLabels | None) -> Folder:
    """A folder of images for validation with labels as the training images have them."""
    folder = Folder.at(images)
    if labels is not None and not isinstance(labels, str | Path):
        raise UserError("valid_labels is a list, but valid is a folder; give a CSV file")
    return folder if training is None else training.of(folder, labels)


def pictures_of(
    images: Any,
    image_size: int | str | None = None,
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
    centre, and resized; unreadable ones are rejected. image_size: if None, `_size` chooses it. channels: 1 or
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
    size = sides(image_size or _size([size for size, _ in filter(None, found)]))
    frame = Frame((channels or (1 if kinds == {True} else 3), *size), background, fit)
    rows = (
        images.read(frame, None if whole else SAMPLED)
        if isinstance(images, Folder)
        else _read(items(), frame)
    )
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
        raise UserError("all labels are None; give some, or leave labels out")
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
    channels, *size = training.images.shape[1:]
    same = {"image_size": size_of(*size), "channels": channels}
    found = pictures_of(images, **{**framed, **same}, whole=True)
    names = images.classes if isinstance(images, Folder) else ()
    if labels is not None:
        labels = _require_list(labels)
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


def _require_list(labels: Labels) -> Sequence[int | str | None]:
    assert labels is not None
    if isinstance(labels, str | Path):
        raise UserError(f"labels is {str(labels)!r}, which is for a folder; give a list of labels")
    return labels


def _require_classes(names: Iterable[str], classes: Sequence[str]) -> None:
    if others := sorted(set(names) - set(classes)):
        raise UserError(f"images for validation have a class {others[0]!r}, which no other image has")


def reasons(skipped: Sequence[Reject]) -> str:
    shown = [f"{one.id}: {one.reason}" for one in skipped[:SHOWN]]
    return "; ".join([*shown, "..."] if len(skipped) > SHOWN else shown)


def _items_of(images: Any) -> Callable[[], Iterator[tuple[str, Picture, int]]]:
    """Returns a function that yields (id, picture, label) of all items at each call."""
    if isinstance(images, Mapping):  # for example, the splits of a Hugging Face data set
        raise UserError(f"images is a mapping of {', '.join(map(str, images))}; give one of these")
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim not in (3, 4):
        raise UserError(f"images must be (N, H, W), (N, H, W, C) or (N, C, H, W), not {tuple(images.shape)}")
    if hasattr(images, "iter_rows"):  # a Ray Dataset of validation images
        rows = images.iter_rows
    elif hasattr(images, "__len__"):
        by_place = getattr(images, "iloc", images)  # `iloc` indexes the rows of pandas from 0
        rows = partial(map, by_place.__getitem__, range(len(images)))
    else:
        kind = type(images).__name__
        raise UserError(f"images must be a folder, an array, a tensor or a sequence, not {kind}")
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
            return upright_size(opened), is_grey(opened)
    except BadPicture:
        return None


def canvas_scale(height: int, width: int) -> int | None:
    """The ratio of an image's sides to those of its canvas; None if no canvas is small enough."""
    longer = max(height, width)
    scales = (n for n in range(1, LARGEST_SCALE + 1) if height % n == width % n == 0)
    return next((n for n in scales if longer // n <= LARGEST_CANVAS), None)


def _size(sizes: Sequence[tuple[int, int]]) -> int | str:
    """The size of the images for pictures of these (width, height), as `data.image_size` states it.

    The pictures' own size if they have one that is small; else the longer side is SMALL or LARGE, by the
    median size. The images are squares unless nearly all pictures have the same other shape.
    """
    if not sizes:
        return SMALL
    low, shape, high = np.quantile([width / height for width, height in sizes], ALL_BUT_A_TENTH)
    odd = max(shape, 1 / shape)  # the longer side to the shorter one
    kept = high <= ALIKE * low and ALIKE < odd <= MOST_ODD
    (width, height), several = sizes[0], len(set(sizes)) > 1
    own = not several and (kept or width == height) and max(width, height) <= LARGE
    if own and canvas_scale(height, width):
        return size_of(height, width)
    longer = SMALL if np.median([min(size) for size in sizes]) < 48 else LARGE
    if not kept:
        return longer
    shorter = STEP * round(longer / odd / STEP)
    return size_of(*((shorter, longer) if shape > 1 else (longer, shorter)))
