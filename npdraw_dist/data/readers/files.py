"""Reads image files from a user's folders, CelebA (Liu et al., 2015) and Omniglot (Lake et al., 2015)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.pictures import SUFFIXES, BadPicture, Frame, is_picture, read_picture
from npdraw_dist.data.listing import ROWS, list_paths, list_tree, local_path, stamp_of
from npdraw_dist.data.readers.known import find_data
from npdraw_dist.data.rows import RowBuilder, Rows, frame_of
from npdraw_dist.data.shards import Source, listed
from npdraw_dist.data.splits import SPLITS, TEST_SEED, HashSplit, Split, holdout, shuffled, stated_split
from npdraw_dist.distributed.tasks import free_threads
from npdraw_dist.system.errors import UserError
from npdraw_dist.system.storage import open_filesystem, read_bytes

LOCAL = fs.LocalFileSystem()
WORDS = ".txt"  # suffix of a file that has words about the picture of the same name beside it
CELEBA_CROP = 148  # px; side of the square that is cut from an aligned face and resized, as the authors do
PARTITION = "list_eval_partition.txt"
CELEBA_LAYOUT = f"celeba/img_align_celeba/*.jpg and celeba/{PARTITION}"
OMNIGLOT_PARTS = ("images_background", "images_evaluation")
OMNIGLOT_LAYOUT = "omniglot-py/images_background and omniglot-py/images_evaluation (alphabet/character/*.png)"
# Papers report likelihoods on a split of all alphabets (Burda et al., 2016), which was never published
# for the PNG files. A fixed permutation gives splits of the same sizes from the 32,460 images.
TRAIN, TEST = 24_345, 8_070


class Item(NamedTuple):
    """An image. path: below the root. words: path of a file with words about it, or "". text: its words."""

    path: str
    label: int
    words: str = ""
    text: str = ""


@dataclass(frozen=True)
class Files:
    """N image files. paths: below the root. labels: (N,). words: (N,), whether NAME.txt is beside each.

    texts: (N,), the words about each, if they are not beside.
    """

    paths: pa.LargeStringArray
    labels: NDArray[np.int64]
    words: NDArray[np.bool_]
    texts: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, order: NDArray[np.int64]) -> "Files":
        """The files at the positions `order`."""
        texts = None if self.texts is None else self.texts.take(pa.array(order))
        return Files(self.paths.take(pa.array(order)), self.labels[order], self.words[order], texts)

    def __getitem__(self, index: slice) -> "Files":
        return self.take(np.arange(len(self))[index])

    def __iter__(self) -> Iterator[Item]:
        texts = [""] * len(self) if self.texts is None else _strings(self.texts)
        for path, label, beside, text in zip(
            _strings(self.paths), self.labels, self.words, texts, strict=True
        ):
            here = path.rpartition(".")[0] + WORDS if beside and self.texts is None else ""
            yield Item(path, int(label), here, text)


def read_files(
    filesystem: fs.FileSystem, root: str, frame: Frame, invert: bool, items: Iterable[Item]
) -> Rows:
    """Reads the rows of `items`. The path is the id. invert: whether dark ink becomes bright.

    Several threads decode the pictures, since Pillow releases the interpreter lock.
    """

    def read(item: Item) -> NDArray[np.uint8]:
        image = read_picture(_content(filesystem, root, item.path), frame)
        return 255 - image if invert else image

    builder = RowBuilder(frame.shape)
    with ThreadPoolExecutor(free_threads()) as pool:
        try:
            for item, image in [(item, pool.submit(read, item)) for item in items]:
                text = item.text
                if item.words:
                    text = _bytes(filesystem, root, item.words).decode(errors="replace")
                builder.add(item.path, item.label, image.result, text.strip())
        finally:
            pool.shutdown(cancel_futures=True)
    return builder.rows()


def _content(filesystem: fs.FileSystem, root: str, path: str) -> bytes:
    """Reads a file. Raises BadPicture if it cannot be read, and OSError if the storage fails."""
    try:
        return _bytes(filesystem, root, path)
    except (PermissionError, FileNotFoundError) as error:
        if not filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):  # `root` is not mounted
            raise
        raise BadPicture(f"unreadable file: {error}") from None


def _bytes(filesystem: fs.FileSystem, root: str, path: str) -> bytes:
    if isinstance(filesystem, fs.LocalFileSystem):
        return local_path(root, path).read_bytes()
    return read_bytes(filesystem, f"{root}/{path}")


def open_imagefolder(data: DataConfig, seed: int) -> Source:
    """Opens images in folders at any depth. The first folder is the class; NAME.txt describes NAME.png.

    Top folders with the names of splits (`splits.WORDS`) contain the folders of the classes. But if `train`
    is the only such name and there are other folders, it is a class (railway trains). A split without a
    folder is taken from the training images by a hash of the path.
    """
    if data.path is None:
        raise UserError("data.source imagefolder needs --data.path, a folder of images")
    filesystem, root = open_filesystem(data.path)
    listing = pictures_in(list_tree(filesystem, root))
    items, classes = by_split(listing["path"].combine_chunks(), data, seed)
    if not any(map(len, items.values())):
        raise UserError(f"data.path {data.path} is missing or has no image ({', '.join(SUFFIXES)})")
    read = partial(read_files, filesystem, root, frame_of(data), False)
    return listed(data, seed, read, items, stamp_of(listing), classes)


def pictures_in(listing: pa.Table) -> pa.Table:
    """The rows of a table from `list_tree` that are pictures, or files with words about them."""
    paths = listing["path"].combine_chunks()
    pictures = are_pictures(paths)
    words = pc.is_in(paths, value_set=_words_of(paths.filter(pictures)))
    return listing.filter(pc.or_(pictures, words))


def _words_of(names: pa.LargeStringArray) -> pa.LargeStringArray:
    """The paths where files with words about the pictures `names` would be."""
    return pc.replace_substring_regex(names, r"\.[^.]*$", WORDS)


def by_split(paths: pa.LargeStringArray, data: DataConfig, seed: int) -> tuple[dict[Split, Files], list[str]]:
    """Returns (split -> pictures, names of the classes). paths: those that `pictures_in` returns."""
    is_words = pc.ends_with(paths, WORDS)
    names, texts = paths.filter(pc.invert(is_words)), paths.filter(is_words)
    beside = pc.is_in(_words_of(names), value_set=texts)
    tops = dict.fromkeys(name.partition("/")[0] for name in _strings(names) if "/" in name)
    stated = {folder: stated_split(folder) for folder in tops}
    if set(stated.values()) == {"train", None}:
        stated = dict.fromkeys(stated)
    rule = HashSplit.of(data, seed, own={split for split in stated.values() if split})
    split_of, class_of = np.empty(len(names), np.int8), np.empty(len(names), np.int64)
    numbers: dict[str, int] = {}
    for index, name in enumerate(_strings(names)):
        top, *folders = name.split("/")[:-1] or [""]
        own = stated.get(top)
        split_of[index] = SPLITS.index(rule.split_of(name, own))
        label = next(iter(folders), "") if own else top
        class_of[index] = numbers.setdefault(label, len(numbers))
    classes = sorted(set(numbers) - {""})  # an image in no folder has no class
    order = {name: number for number, name in enumerate(classes)}
    labels = np.array([order.get(name, -1) for name in numbers], np.int64)[class_of]
    files = Files(names, labels, beside.to_numpy(zero_copy_only=False))
    return {split: files.take(np.flatnonzero(split_of == i)) for i, split in enumerate(SPLITS)}, classes


def are_pictures(paths: pa.LargeStringArray) -> pa.BooleanArray:
    """Whether each file is a picture, judged by its name."""
    return pa.array(np.fromiter(map(is_picture, _strings(paths)), np.bool_, len(paths)))


def _strings(array: pa.LargeStringArray) -> Iterator[str]:
    """Yields the entries of an array. At most ROWS of them are Python objects at the same time."""
    for start in range(0, len(array), ROWS):
        yield from array[start : start + ROWS].to_pylist()


def open_celeba(data: DataConfig, seed: int) -> Source:
    """CelebA, with the splits of its partition file and without labels."""

    def complete(root: Path) -> bool:
        return (root / "img_align_celeba").is_dir() and (root / PARTITION).is_file()

    root = find_data(data, ("celeba",), complete, CELEBA_LAYOUT, "CelebA", {"split": "all"})
    items: dict[Split, list[Item]] = {split: [] for split in SPLITS}
    for number, line in enumerate((root / PARTITION).read_text().splitlines(), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise UserError(f"{root / PARTITION}, line {number}: expected a file name and 0, 1 or 2")
        items[SPLITS[int(fields[1])]].append(Item(fields[0], -1))
    frame = Frame(data.shape, fit="crop", most=CELEBA_CROP)
    read = partial(read_files, LOCAL, str(root / "img_align_celeba"), frame, False)
    names = [f"img_align_celeba/{item.path}" for own in items.values() for item in own]
    return listed(data, seed, read, items, stamp_of(list_paths(LOCAL, str(root), [PARTITION, *names])))


def open_omniglot(data: DataConfig, seed: int) -> Source:
    """Omniglot, with a label for each character. A copy with fewer images is split in the same proportion."""

    def complete(root: Path) -> bool:
        return all((root / part).is_dir() for part in OMNIGLOT_PARTS)

    halves = ({"background": True}, {"background": False})
    root = find_data(data, ("omniglot-py",), complete, OMNIGLOT_LAYOUT, "Omniglot", *halves)
    names = sorted(
        path.relative_to(root).as_posix()
        for part in OMNIGLOT_PARTS
        for path in root.glob(f"{part}/*/*/*.png")
    )
    if not names:
        raise UserError(f"{root} has no image; it must hold {OMNIGLOT_LAYOUT}")
    labels = {c: i for i, c in enumerate(sorted({name.rpartition("/")[0] for name in names}))}
    items = [Item(name, labels[name.rpartition("/")[0]]) for name in names]
    used = shuffled(items, TEST_SEED, "omniglot")[: TRAIN + TEST]
    test = round(len(used) * TEST / (TRAIN + TEST))
    train, valid = holdout(sorted(used[test:]), data.valid_fraction, seed)
    read = partial(read_files, LOCAL, str(root), Frame(data.shape), True)
    stamp = stamp_of(list_paths(LOCAL, str(root), names))
    splits: dict[Split, list[Item]] = {"train": train, "valid": valid, "test": sorted(used[:test])}
    return listed(data, seed, read, splits, stamp, list(labels))
