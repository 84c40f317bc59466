"""Images of any Python kind as rows, with the labels that `fit` is given.

Shapes: N images, C channels, S side of the square.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image

from npdraw_dist.core.errors import UserError
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
from npdraw_dist.core.vocabulary import MOST_CLASSES, as_python
from npdraw_dist.data.listing import list_tree, local_path, stamp_of
from npdraw_dist.data.readers.files import LOCAL, Files, are_pictures
from npdraw_dist.data.rows import Reject, Rows

SMALL, LARGE = 32, 64  # the sides that pictures of other sizes get
LARGEST_CANVAS, LARGEST_SCALE = 36, 4  # pixels of a side; an image has up to 4 times as many
KEYS = ("image", "img", "pixel_values")  # a dict's picture, the first that is there
SEEN = 1000  # pictures of a Ray Dataset that decide sizes and settings
# Of a folder with more pictures, these headers and these pixels of a seeded sample decide them.
HEADERS, SAMPLED = 10_000, 256
AT_ONCE = 10**9  # pixels of a folder that one thread reads in some seconds
SHOWN = 3  # names of skipped pictures in a warning

Item = tuple[str, Path | bytes | Image.Image, int]  # id, picture, label


class Folder:
    """The pictures in a local folder.

    files: their paths below `root`, and the numbers of their first folders among `classes`, which are sorted.
    stamp: changes with the files. most: if there are more, a sample of so many decides the settings, and the
    stage `data` alone reads them all; None: all are read at once.
    """

    def __init__(self, folder: str | Path, most: int | None = None) -> None:
        if "://" in str(folder):
            raise UserError(
                f"images are at {folder}; copy them here, or give `npdraw train` that --data.path"
            )
        self.root, self.most = str(Path(folder).expanduser().absolute()), most
        listing = list_tree(LOCAL, self.root)
        listing = listing.filter(are_pictures(listing["path"].combine_chunks())).combine_chunks()
        if not len(listing):
            raise UserError(f"{self.root} has no image ({', '.join(SUFFIXES)})")
        self.stamp, paths = stamp_of(listing), listing["path"].combine_chunks()
        tops = pc.replace_substring_regex(paths, "(?s)/.*", "")
        top_of = pc.if_else(pc.match_substring(paths, "/"), tops, None).dictionary_encode()
        folders = top_of.dictionary.to_pylist()
        self.classes = tuple(sorted(folders))
        order = {name: number for number, name in enumerate(self.classes)}
        numbers = np.array([order[name] for name in folders] + [-1], np.int64)  # the last: in no folder
        labels = numbers[top_of.indices.fill_null(len(folders)).to_numpy(zero_copy_only=False)]
        self.files = Files(paths, labels, np.zeros(len(paths), np.bool_))

    @property
    def is_large(self) -> bool:
        return self.most is not None and len(self.files) > self.most

    def items(self, most: int | None) -> Iterator[Item]:
        """(name, path, label) of all pictures, or of a seeded sample of `most`."""
        files = self.files
        if most is not None and len(files) > most:
            files = files.take(np.sort(np.random.default_rng(0).permutation(len(files))[:most]))
        for name, label, _ in files:
            yield name, local_path(self.root, name), label


def seen_of(images: Any) -> tuple[Any, int | None]:
    """The images that decide the settings; and of a Ray Dataset how many there are, else None."""
    if isinstance(images, str | Path):
        return Folder(images, SAMPLED), None
    is_dataset = hasattr(images, "take") and hasattr(images, "write_parquet")
    return (images.take(SEEN), images.count()) if is_dataset else (images, None)


@dataclass(frozen=True)
class Looked:
    """What `fit` knows of its images before it trains.

    seen: as `seen_of` gives it. pictures: those that decide the settings; all, but of a Ray Dataset and of a
    large folder. classes: their names, if there are any. validation: if other images are given for it.
    count: of all images. is_dataset: whether they are a Ray Dataset.
    """

    seen: Any
    pictures: Rows
    classes: tuple[str, ...]
    validation: Rows | None
    count: int
    is_dataset: bool

    @property
    def is_partial(self) -> bool:
        """Whether only some of the images have been looked at."""
        return self.is_dataset or (isinstance(self.seen, Folder) and self.seen.is_large)


def look(
    images: tuple[Any, Sequence[int | str | None] | None],
    valid: tuple[Any, Sequence[int | str | None] | None],
    kind: str | None,
    image_size: int | None,
    channels: int | None,
    framed: Mapping[str, Any],
) -> Looked:
    """Looks at the images, and at those for validation, None or each with its labels or None.

    kind: `prior.condition`, if it is given. image_size, channels: None if the pictures decide them. framed:
    `fit` and `background` of section data. Raises UserError on what cannot be used.
    """
    (seen, count), labels = seen_of(images[0]), images[1]
    pictures = pictures_of(seen, image_size, channels=channels, **framed)
    classes = seen.classes if isinstance(seen, Folder) else ()
    if labels is not None:
        if count is not None:
            raise UserError("labels are for a list of images; a Ray Dataset has a column `label`")
        _require_list(seen)
        pictures, classes = labelled(pictures, labels, kind)
    validation = None
    if valid[0] is not None:
        validation = validation_rows(*valid, pictures, labels is not None, classes, framed)
    elif valid[1] is not None:
        raise UserError("valid_labels are of images for validation; give valid too")
    number = len(seen.files) if isinstance(seen, Folder) and seen.is_large else len(pictures)
    return Looked(seen, pictures, classes, validation, count or number, count is not None)


def pictures_of(
    images: Any,
    image_size: int | None = None,
    fit: Literal["pad", "crop"] = "pad",
    background: str = "white",
    channels: int | None = None,
) -> Rows:
    """Reads `images`: a folder, an array or tensor, a Ray Dataset, or any sequence of images.

    Of a large folder it reads a sample, which decides the settings.

    An array is (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or floats in [0, 1]. An item of a sequence, as
    of a torch Dataset, is an array, a tensor, a PIL image, a path or an encoded picture: alone, before its
    label in a tuple, or under one of KEYS beside `label` in a dict; the label of a file is the number of its
    folder. Pictures are opened one at a time, first for their sizes, padded with the background (`crop`:
    cropped to the centre), resized to `image_size`, by default SMALL or LARGE, and left out if they cannot be
    read. channels: 1 or 3; None: 1 if all are grey. Raises UserError on anything else.
    """
    if isinstance(images, str | Path):
        images = Folder(images, SAMPLED)
    items, skipped = _items_of(images), dict[str, str]()
    looked_at = images.items(images.most and HEADERS) if isinstance(images, Folder) else items()
    sizes: list[tuple[int, int]] = []
    kinds: set[bool | None] = set()
    for name, item, _ in looked_at:
        try:
            size, grey = _header(item)
            sizes.append(size)
            kinds.add(grey)
        except BadPicture as error:
            skipped[name] = str(error)
    side = image_size or _side(sizes)
    frame = Frame((channels or (1 if kinds == {True} else 3), side, side), background, fit)
    large = isinstance(images, Folder) and sum(width * height for width, height in sizes) > AT_ONCE
    if isinstance(images, Folder) and images.is_large:  # the stage `data` lists the others
        skipped = {name: skipped[name] for name, *_ in items() if name in skipped}
    take, readable = partial(_pixels, frame), (one for one in items() if one[0] not in skipped)
    read: list[tuple[str, int, NDArray[np.uint8]]] = []
    # Threads, as many as torch computes on, where it takes long: Pillow decodes without Python's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for name, label, image in pool.map(take, readable) if large else map(take, readable):
            if isinstance(image, str):
                skipped[name] = image
            else:
                read.append((name, label, image))
    rejects = [Reject(name, why) for name, why in skipped.items()]
    if not read:
        why = f" ({reasons(rejects)})" if rejects else ""
        raise UserError(f"there are no images to fit{why}")
    names, labels, stack = zip(*read, strict=True)
    pixels = np.stack(stack)
    if (
        channels is None and False not in kinds and (pixels == pixels[:, :1]).all()
    ):  # what is transparent may be grey
        pixels = np.ascontiguousarray(pixels[:, :1])
    return Rows(list(names), pixels, np.array(labels, np.int64), rejects)


def _pixels(frame: Frame, item: Item) -> tuple[str, int, NDArray[np.uint8] | str]:
    """Id, label, and (C, H, W), or why the picture cannot be read."""
    name, picture, label = item
    try:
        if isinstance(picture, Image.Image):
            return name, label, to_image(picture, frame)
        return name, label, read_picture(picture, frame)
    except BadPicture as error:
        return name, label, str(error)


def _label(given: Any) -> Any:
    """A label as it was meant: tables give numbers as floats where some are missing."""
    if not isinstance(given, float):
        return given
    if isnan(given):
        return None
    return int(given) if given.is_integer() else given


def labelled(
    pictures: Rows,
    labels: Sequence[int | str | None],
    kind: str | None = None,
    classes: Sequence[str] = (),
) -> tuple[Rows, tuple[str, ...]]:
    """The pictures with their labels, and the names of the classes; none: the labels are words.

    kind: class or words; None: names are words if most come once. classes: those that there can be, if they
    are known. What is not known is -1 among whole numbers, None or NaN. Raises UserError if the numbers
    differ, a class is another, or no label is known.
    """
    given = [_label(label) for label in as_python(labels)]
    if all(label is None or type(label) is int for label in given):  # True is a name
        given = [None if label == -1 else label for label in given]
    if len(given) != len(pictures) + len(pictures.rejects):
        raise UserError(f"there are {len(given)} labels for {len(pictures) + len(pictures.rejects)} images")
    of_each = [given[int(name)] for name in pictures.ids]
    known = [label for label in given if label is not None]
    names = {str(label) for label in known}
    seldom_twice = bool(known) and isinstance(known[0], str) and 2 * len(names) > len(known)
    if kind == "words" or (kind is None and seldom_twice):
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
    labels: Sequence[int | str | None] | None,
    training: Rows,
    has_labels: bool,
    classes: Sequence[str],
    framed: Mapping[str, Any],
) -> Rows:
    """The images for validation, in the form of those of training.

    has_labels: those of training came with a list of labels. Raises UserError on another class, or none.
    """
    channels, side, _ = training.images.shape[1:]
    images = Folder(images) if isinstance(images, str | Path) else images
    found = pictures_of(images, side, channels=channels, **framed)
    names = images.classes if isinstance(images, Folder) else ()
    if labels is not None:
        _require_list(images)
        if not classes and training.words is None and any(isinstance(label, str) for label in labels):
            raise UserError("the images have no classes by name; give valid_labels as numbers, or labels too")
        found, _ = labelled(found, labels, "words" if training.words is not None else "class", classes)
    elif names and classes:
        _require_classes(names, classes)
        numbers = np.array([classes.index(name) for name in names], np.int64)
        given = found.known_labels()
        found = replace(found, labels=np.where(given >= 0, numbers[given], -1))
    elif has_labels:
        raise UserError("the images have labels, those for validation have none; give valid_labels")
    elif names:  # of no use: the others have no classes
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


def _items_of(images: Any) -> Callable[[], Iterator[Item]]:
    """What gives (id, picture, label) of each item, one at a time, at each call."""
    if isinstance(images, Folder):
        return partial(images.items, images.most)
    if isinstance(images, Mapping):  # such as the splits of a Hugging Face data set
        raise UserError(f"images are a mapping of {', '.join(map(str, images))}; give one of these")
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim not in (3, 4):
        raise UserError(f"images are (N, H, W), (N, H, W, C) or (N, C, H, W), not {tuple(images.shape)}")
    if hasattr(images, "iter_rows"):  # a Ray Dataset of validation
        rows = images.iter_rows
    elif hasattr(images, "__len__"):
        by_place = getattr(images, "iloc", images)  # of pandas, whose own index is of any kind
        rows = partial(map, by_place.__getitem__, range(len(images)))
    else:
        kind = type(images).__name__
        raise UserError(f"images are a folder, an array, a tensor or a sequence, not {kind}")
    return lambda: (
        (f"{number:08d}", *picture_and_label(value, f"{number:08d}")) for number, value in enumerate(rows())
    )


def picture_and_label(value: Any, name: str) -> tuple[Path | bytes | Image.Image, int]:
    """A picture, of which no more than the header is read, and its label; -1: unknown."""
    label: Any = -1
    if isinstance(value, tuple) and value:
        value, label = value[0], value[1] if len(value) > 1 else -1
    elif isinstance(value, Mapping):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise UserError(f"image {name} has none of {', '.join(KEYS)}, but {', '.join(map(str, value))}")
        value, label = value[key], value.get("label", -1)
    if isinstance(value, Mapping) and value.get("bytes") is not None:  # as Hugging Face writes it
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
    except BadPicture as error:  # an array is no file: whoever made it can mend it
        raise UserError(f"image {name} has {error}") from None


def _header(item: Path | bytes | Image.Image) -> tuple[tuple[int, int], bool | None]:
    """Width and height, and whether the picture is grey; None: only pixels tell. Raises BadPicture."""
    if isinstance(item, Image.Image):
        return item.size, is_grey(item)
    with open_picture(item) as picture:
        return picture.size, is_grey(picture)


def canvas_scale(side: int) -> int | None:
    """Side of an image -> how many times that of its canvas it is; None: no canvas is small enough."""
    scales = range(1, LARGEST_SCALE + 1)
    return next((n for n in scales if side % n == 0 and side // n <= LARGEST_CANVAS), None)


def _side(sizes: Sequence[tuple[int, int]]) -> int:
    """The side of the images: that of the pictures if they are squares of one small size."""
    sides = {side for size in sizes for side in size}
    if len(sides) == 1 and (side := sides.pop()) <= LARGE and canvas_scale(side):
        return side
    return SMALL if np.median([min(size) for size in sizes] or [0]) < 48 else LARGE
