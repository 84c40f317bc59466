"""Reads known data sets that are arrays, such as scikit-learn's digits, MNIST, Fashion-MNIST and CIFAR-10.

Shapes: N images, C channels, H x W pixels.
"""

import gzip
import hashlib
import importlib.util
import pickle
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.listing import list_paths, stamp_of
from npdraw_dist.data.readers.known import find_data, kept
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import Source, listed
from npdraw_dist.data.splits import Split, holdout, stratified
from npdraw_dist.system.errors import UserError

# Images (N, C, H, W) uint8, and their labels (N,).
Arrays = tuple[NDArray[np.uint8], NDArray[Any]]
LOCAL = fs.LocalFileSystem()
SIDE = 28
INNER = 24  # side of an enlarged digit of scikit-learn, without the margin
IDX_BYTES = b"\0\0\x08"  # first bytes of an IDX file of uint8
IDX_SETS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # source -> its class in torchvision
IDX_PREFIXES = {"train": "train", "test": "t10k"}
IDX_LAYOUT = (
    "the four files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, plain or .gz"
)
DIGITS = tuple("0123456789")
CLASSES = {
    "mnist": DIGITS,
    "fashion_mnist": (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
CIFAR_BATCHES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
CIFAR_LAYOUT = "cifar-10-batches-py/data_batch_1 to data_batch_5 and test_batch"
# All classes that a pickled NumPy array needs, if Python 2 (the published files) or Python 3 wrote it.
ALLOWED = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
}


def read_rows(arrays: Callable[[str], Arrays], ids: str, items: Sequence[tuple[str, int]]) -> Rows:
    """Reads the rows of `items`, pairs (part of the set, index). arrays: reads a part. ids: format of ids."""
    parts = {part: arrays(part) for part in sorted({part for part, _ in items})}
    images = np.stack([parts[part][0][i] for part, i in items])
    labels = np.array([parts[part][1][i] for part, i in items], dtype=np.int64)
    return Rows([ids.format(*item) for item in items], images, labels)


def _with_own_test(
    data: DataConfig,
    seed: int,
    read: Callable[[Sequence[Any]], Rows],
    sizes: Mapping[str, int],
    stamp: str,
) -> Source:
    """Makes a source. Its last part is the test split; a seeded share of the others is for validation."""
    *own, test = ([(part, i) for i in range(size)] for part, size in sizes.items())
    train, valid = holdout([row for rows in own for row in rows], data.valid_fraction, seed)
    splits: dict[Split, list[tuple[str, int]]] = {"train": train, "valid": valid, "test": test}
    return listed(data, seed, read, splits, stamp, CLASSES[data.source])


@cache
def load_digits() -> Arrays:
    """1,797 handwritten digits (UCI), (N, 8, 8) in 0..16, and their labels, from scikit-learn's file.

    scikit-learn is not imported if the file is found, since the import takes as long as that of torch.
    """
    spec = importlib.util.find_spec("sklearn")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for file in (Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders):
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",").astype(np.uint8)
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn import datasets

    raw = datasets.load_digits()  # a later version may store the digits elsewhere
    return raw.images.astype(np.uint8), raw.target.astype(np.uint8)


@cache
def digits(part: str = "") -> Arrays:
    """All digits, resized to 24x24 (bicubic) and padded with black to 28x28. `part` is not used."""
    images, labels = load_digits()
    small = torch.from_numpy(images).float()[:, None] / 16
    large = F.interpolate(small, size=(INNER, INNER), mode="bicubic", align_corners=False)
    framed = F.pad(large.clamp(0, 1), ((SIDE - INNER) // 2,) * 4)
    return (framed * 255).round().to(torch.uint8).numpy(), labels


def open_digits(data: DataConfig, seed: int) -> Source:
    """Opens the digits, `stratified` by label. data.path is ignored."""
    if data.path is not None:
        warnings.warn("data.path is ignored: the digits come with scikit-learn", stacklevel=2)
    images, labels = load_digits()
    parts = stratified(labels.astype(np.int64), (data.test_fraction, data.valid_fraction), seed)
    test, valid, train = ([("", i) for i in part] for part in parts)
    # The stamp is that of the 8x8 digits, since enlarging may round differently on another processor.
    stamp = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    read = partial(read_rows, digits, "digits-{1:06d}")
    return listed(data, seed, read, {"train": train, "valid": valid, "test": test}, stamp, DIGITS)


def open_given(data: DataConfig, seed: int) -> Source:
    """Raises UserError, since only a call of `npdraw_dist.fit` can provide the images."""
    raise UserError("the images of this run were given to npdraw_dist.fit; call it again with them")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file whose values are bytes. Raises UserError on any other file."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(content) < 4 or content[:3] != IDX_BYTES:
            raise ValueError("its header is wrong")
        start = 4 + 4 * content[3]
        shape = np.frombuffer(content[4:start], ">u4").tolist()
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is no complete IDX file of bytes ({error}); get it again") from None


def idx_files(root: Path, part: str) -> list[Path]:
    """The files of images and labels of a part, plain or gzipped. A missing file is left out."""
    stems = (f"{IDX_PREFIXES[part]}-images-idx3-ubyte", f"{IDX_PREFIXES[part]}-labels-idx1-ubyte")
    files = [next((f for f in (root / s, root / f"{s}.gz") if f.is_file()), None) for s in stems]
    return [file for file in files if file is not None]


@kept(maxsize=4)
def _idx(root: Path, part: str) -> Arrays:
    if len(found := idx_files(root, part)) < 2:
        raise UserError(f"{root} lacks the images or the labels of {part}; get both files again")
    images, labels = found
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise UserError(f"{images} has {pixels.shape}, but {labels} {classes.shape}; get both again")
    return pixels[:, None], classes


def open_idx(data: DataConfig, seed: int) -> Source:
    """MNIST or Fashion-MNIST, from IDX files in torchvision's layout or in one folder."""

    def complete(root: Path) -> bool:
        return all(len(idx_files(root, part)) == 2 for part in IDX_PREFIXES)

    name = IDX_SETS[data.source]
    root = find_data(data, (f"{name}/raw", "raw"), complete, IDX_LAYOUT, name, {"train": True})
    sizes = {}
    for part in IDX_PREFIXES:
        pixels, _ = _idx(root, part)
        if pixels.shape[2:] != data.shape[1:]:
            images, _ = idx_files(root, part)
            raise UserError(f"{images} holds images of {pixels.shape[2:]}, not {data.shape[1:]} pixels")
        sizes[part] = len(pixels)
    names = [path.name for part in IDX_PREFIXES for path in idx_files(root, part)]
    stamp = stamp_of(list_paths(LOCAL, str(root), names))
    read = partial(read_rows, partial(_idx, root), data.source + "-{}-{:06d}")
    return _with_own_test(data, seed, read, sizes, stamp)


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses every class that an array does not need, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module, name)


@kept(maxsize=6)
def _cifar(root: Path, part: str) -> Arrays:
    """The images and labels of a batch file. Raises UserError on any other file."""
    try:
        with (root / part).open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        pixels = np.asarray(batch["data"])
        labels = np.asarray(batch["labels"], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"data is {pixels.dtype} {pixels.shape} for {len(labels)} labels")
    except Exception as error:  # a damaged pickle raises errors of any type
        raise UserError(f"{root / part} is no readable CIFAR-10 batch ({error}); get it again") from None
    return pixels.reshape(-1, 3, 32, 32), labels


def open_cifar(data: DataConfig, seed: int) -> Source:
    """CIFAR-10 (Krizhevsky, 2009), from its Python batch files. Only arrays are unpickled."""

    def complete(root: Path) -> bool:
        return all((root / part).is_file() for part in CIFAR_BATCHES)

    root = find_data(data, ("cifar-10-batches-py",), complete, CIFAR_LAYOUT, "CIFAR10", {})
    sizes = {part: len(_cifar(root, part)[0]) for part in CIFAR_BATCHES}
    read = partial(read_rows, partial(_cifar, root), "cifar10-{}-{:05d}")
    return _with_own_test(data, seed, read, sizes, stamp_of(list_paths(LOCAL, str(root), CIFAR_BATCHES)))
