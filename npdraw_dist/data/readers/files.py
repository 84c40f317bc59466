"""Single image files: the reader of `imagefolder`, `omniglot` and `celeba`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.core.pictures import BadPicture, Frame, read_picture
from npdraw_dist.core.storage import list_files, open_filesystem, read_bytes
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.rows import RowBuilder, Rows, frame_of
from npdraw_dist.data.shards import ListedSource
from npdraw_dist.data.splits import SPLITS, HashSplit, Split, stated_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".pbm")


@dataclass(frozen=True)
class FileReader:
    """Items are (path below `root`, label); the path is the id. invert: dark ink becomes bright."""

    filesystem: fs.FileSystem
    root: str
    frame: Frame
    invert: bool = False

    def read(self, items: Sequence[tuple[str, int]]) -> Rows:
        builder = RowBuilder(self.frame.shape)
        for name, label in items:
            builder.add(name, label, lambda name=name: self._image(name))  # type: ignore[misc]
        return builder.rows()

    def _image(self, name: str) -> NDArray[np.uint8]:
        try:
            content = read_bytes(self.filesystem, f"{self.root}/{name}")
        except OSError as error:
            raise BadPicture(f"unreadable file: {error}") from None
        image = read_picture(content, self.frame)
        return 255 - image if self.invert else image


def open_imagefolder(data: DataConfig, seed: int) -> ListedSource:
    """Images in folders at any depth. The first folder is the class.

    Top folders named train, valid (val, validation) and test are splits, and hold the classes. A split
    without a folder is taken from the training images by a hash of the path.
    """
    if data.path is None:
        raise UserError("data.source imagefolder needs --data.path, a folder of images")
    filesystem, root = open_filesystem(data.path)
    names = [path[len(root) + 1 :] for path, _ in list_files(filesystem, root)]
    names = [n for n in names if n.lower().endswith(SUFFIXES) and not n.rpartition("/")[2].startswith(".")]
    if not names:
        raise UserError(f"data.path {data.path} is missing or has no image ({', '.join(SUFFIXES)})")
    stated = {name: stated_split(name.partition("/")[0]) if "/" in name else None for name in names}
    classes = {name: _class(name, stated[name]) for name in names}
    labels = {c: i for i, c in enumerate(sorted(set(classes.values()) - {""}))}
    rule = HashSplit.of(data, seed, own={s for s in stated.values() if s})
    items: dict[Split, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for name in names:
        items[rule.split_of(name, stated[name])].append((name, labels.get(classes[name], -1)))
    inputs = Inputs(filesystem, root, tuple(names), is_folder=True)
    return ListedSource(data, seed, FileReader(filesystem, root, frame_of(data)), items, inputs)


def _class(name: str, stated: str | None) -> str:
    """The folder that names the class of an image; empty if it is in none."""
    folders = name.split("/")[:-1]
    return next(iter(folders[1:] if stated else folders), "")
