"""Single image files: the user's folders, CelebA (Liu et al., 2015) and Omniglot (Lake et al., 2015)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pictures import SUFFIXES, BadPicture, Frame, is_picture, read_picture
from npdraw_dist.core.storage import open_filesystem, read_bytes
from npdraw_dist.data.identity import Inputs, list_tree
from npdraw_dist.data.readers.known import find_data
from npdraw_dist.data.rows import RowBuilder, Rows, frame_of
from npdraw_dist.data.shards import Source, listed
from npdraw_dist.data.splits import SPLITS, TEST_SEED, HashSplit, Split, holdout, shuffled, stated_split

LOCAL = fs.LocalFileSystem()
CELEBA_CROP = 148  # side of the crop of aligned faces, resized to 64x64 as the authors do
PARTITION = "list_eval_partition.txt"
CELEBA_LAYOUT = f"celeba/img_align_celeba/*.jpg and celeba/{PARTITION}"
OMNIGLOT_PARTS = ("images_background", "images_evaluation")
OMNIGLOT_LAYOUT = "omniglot-py/images_background and omniglot-py/images_evaluation (alphabet/character/*.png)"
# Likelihoods are reported on a split of all alphabets (Burda et al., 2016). Its lists were never published
# for the PNG files, so a fixed permutation takes as many of the 32,460 images.
TRAIN, TEST = 24_345, 8_070


class Item(NamedTuple):
    """An image. path: below the root. words: path of the file with words about it; "" if there is none."""

    path: str
    label: int
    words: str = ""


def _read_files(
    filesystem: fs.FileSystem, root: str, frame: Frame, invert: bool, items: Sequence[Item]
) -> Rows:
    """The rows of `items`; the path is the id. invert: dark ink is bright."""

    def read(name: str) -> NDArray[np.uint8]:
        try:  # any other OSError is the storage's: the picture may be whole
            content = read_bytes(filesystem, f"{root}/{name}")
        except (PermissionError, FileNotFoundError) as error:
            if not filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):  # it is not mounted
                raise
            raise BadPicture(f"unreadable file: {error}") from None
        image = read_picture(content, frame)
        return 255 - image if invert else image

    builder = RowBuilder(frame.shape)
    for name, label, words in items:
        text = read_bytes(filesystem, f"{root}/{words}").decode(errors="replace").strip() if words else ""
        builder.add(name, label, partial(read, name), text)
    return builder.rows()


def open_imagefolder(data: DataConfig, seed: int) -> Source:
    """Images in folders at any depth. The first folder is the class; NAME.txt beside NAME.png has words.

    Top folders with the names of splits (`splits.WORDS`) hold the classes; but `train` alone among others
    is a class, as of vehicles. A split without a folder is taken from the training images by a hash of the
    path.
    """
    if data.path is None:
        raise UserError("data.source imagefolder needs --data.path, a folder of images")
    filesystem, root = open_filesystem(data.path)
    files = {file.path for file in list_tree(filesystem, root)}
    names = sorted(filter(is_picture, files))
    if not names:
        raise UserError(f"data.path {data.path} is missing or has no image ({', '.join(SUFFIXES)})")
    top = {name: name.partition("/")[0] for name in names if "/" in name}
    splits = {folder: stated_split(folder) for folder in top.values()}
    if set(splits.values()) == {"train", None}:
        splits = dict.fromkeys(splits)
    stated = {name: splits[top[name]] if name in top else None for name in names}
    classes = {}  # empty: of an image in no folder
    for name in names:
        folders = name.split("/")[:-1]
        classes[name] = next(iter(folders[1:] if stated[name] else folders), "")
    labels = {c: i for i, c in enumerate(sorted(set(classes.values()) - {""}))}
    rule = HashSplit.of(data, seed, own={s for s in stated.values() if s})
    items: dict[Split, list[Item]] = {split: [] for split in SPLITS}
    for name in names:
        words = f"{name.rpartition('.')[0]}.txt"
        item = Item(name, labels.get(classes[name], -1), words if words in files else "")
        items[rule.split_of(name, stated[name])].append(item)
    texts = (item.words for own in items.values() for item in own if item.words)
    inputs = Inputs(filesystem, root, tuple(sorted({*names, *texts})), is_folder=True)
    read = partial(_read_files, filesystem, root, frame_of(data), False)
    return listed(data, seed, read, items, inputs, list(labels))


def open_celeba(data: DataConfig, seed: int) -> Source:
    """The source, with the splits of its partition file. It has no labels."""

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
    read = partial(_read_files, LOCAL, str(root / "img_align_celeba"), frame, False)
    names = [f"img_align_celeba/{name}" for split in SPLITS for name, *_ in items[split]]
    inputs = Inputs(LOCAL, str(root), (PARTITION, *names), is_folder=True)
    return listed(data, seed, read, items, inputs)


def open_omniglot(data: DataConfig, seed: int) -> Source:
    """The source. Labels number the characters; a smaller set is split in the same proportion."""

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
    read = partial(_read_files, LOCAL, str(root), Frame(data.shape), True)
    inputs = Inputs(LOCAL, str(root), tuple(names), is_folder=True)
    splits: dict[Split, list[Item]] = {"train": train, "valid": valid, "test": sorted(used[:test])}
    return listed(data, seed, read, splits, inputs, list(labels))
