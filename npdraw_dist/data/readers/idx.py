"""MNIST and Fashion-MNIST: IDX files, plain or gzipped, in torchvision's layout or in one folder.

Shapes: N images of H x W pixels.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs
from torchvision import datasets

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.readers.known import find_data, kept
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import ListedSource
from npdraw_dist.data.splits import holdout

UNSIGNED_BYTES = 8  # the type code of IDX for uint8
CLASSES = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}
PREFIXES = {"train": "train", "test": "t10k"}
LAYOUT = (
    "the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, plain or .gz"
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes; plain files are mapped, not read.

    Raises UserError, with the file's name, if the length is not what the header says.
    """
    try:
        if path.suffix == ".gz":
            content: NDArray[np.uint8] = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        else:
            content = np.memmap(path, np.uint8, "r")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is unreadable or truncated ({error}); get it again") from None
    head = bytes(content[:4])
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTES:
        raise UserError(f"{path} is no IDX file of bytes; get it again")
    start = 4 + 4 * head[3]
    shape = [int(n) for n in np.frombuffer(bytes(content[4:start]).ljust(4 * head[3], b"\xff"), ">u4")]
    if len(content) != start + math.prod(shape):
        raise UserError(
            f"{path} has {len(content)} bytes where its header asks for {start + math.prod(shape)}: "
            "it is truncated or damaged; get it again"
        )
    return content[start:].reshape(shape)


@kept(maxsize=4)
def _arrays(images: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise UserError(f"{images} has shape {pixels.shape} and {labels} {classes.shape}; get both again")
    return pixels, classes


def find_files(folder: Path, name: str) -> dict[str, tuple[Path, Path]] | None:
    """split -> (images, labels) in torchvision's folders or in `folder` itself; None if one is missing."""
    for root in (folder / name / "raw", folder / "raw", folder):
        found: dict[str, list[Path]] = {}
        for split, prefix in PREFIXES.items():
            stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
            files = [next((f for f in (root / s, root / f"{s}.gz") if f.is_file()), None) for s in stems]
            found[split] = [file for file in files if file is not None]
        if all(len(files) == 2 for files in found.values()):
            return {split: (files[0], files[1]) for split, files in found.items()}
    return None


@dataclass(frozen=True)
class IdxReader:
    """Items are (file split, row number)."""

    source: str
    files: tuple[tuple[str, Path, Path], ...]

    def read(self, items: Sequence[tuple[str, int]]) -> Rows:
        arrays = {split: _arrays(images, labels) for split, images, labels in self.files}
        images = np.stack([arrays[split][0][i] for split, i in items])[:, None]
        labels = np.array([arrays[split][1][i] for split, i in items], dtype=np.int64)
        return Rows([f"{self.source}-{split}-{i:06d}" for split, i in items], images, labels)


def open_idx(data: DataConfig, seed: int) -> ListedSource:
    """The source: its own test split; validation is a seeded share of the training files."""
    dataset = CLASSES[data.source]

    def download(root: Path) -> None:
        dataset(root, train=True, download=True)

    files = find_data(data, lambda folder: find_files(folder, dataset.__name__), LAYOUT, download)
    reader = IdxReader(data.source, tuple((split, *pair) for split, pair in files.items()))
    rows = {}
    for split, images, labels in reader.files:
        pixels, _ = _arrays(images, labels)
        if pixels.shape[1:] != data.shape[1:]:
            raise UserError(f"{images} holds images of {pixels.shape[1:]}, not {data.shape[1:]} pixels")
        rows[split] = [(split, i) for i in range(len(pixels))]
    train, valid = holdout(rows["train"], data.valid_fraction, seed)
    inputs = Inputs.of_paths(fs.LocalFileSystem(), [str(path) for pair in files.values() for path in pair])
    return ListedSource(data, seed, reader, {"train": train, "valid": valid, "test": rows["test"]}, inputs)
