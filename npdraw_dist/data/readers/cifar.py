"""CIFAR-10 (Krizhevsky, 2009): the python batches, read by an unpickler that knows arrays only.

Shapes: N images, 3 channels, 32 x 32 pixels.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs
from torchvision import datasets

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.core.errors import UserError
from npdraw_dist.data.identity import Inputs
from npdraw_dist.data.readers.known import find_data, first_folder, kept
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import ListedSource
from npdraw_dist.data.splits import Split, holdout

BATCHES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
LAYOUT = "cifar-10-batches-py/data_batch_1 to data_batch_5 and test_batch"
# All that a pickled NumPy array needs, pickled by Python 2 (the published files) or 3.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses every class that an array does not need, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module, name)


@kept(maxsize=6)
def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 3, 32, 32) uint8 and (N,) labels of a batch file. Raises UserError on any other file."""
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        pixels = np.asarray(batch["data"])
        labels = np.asarray(batch["labels"], dtype=np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"data is {pixels.dtype} {pixels.shape} for {len(labels)} labels")
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path} is no readable CIFAR-10 batch ({error}); get it again") from None
    return pixels.reshape(-1, 3, 32, 32), labels


def _root(folder: Path) -> Path | None:
    return first_folder(
        (folder / "cifar-10-batches-py", folder),
        lambda root: all((root / name).is_file() for name in BATCHES),
    )


def _download(folder: Path) -> None:
    datasets.CIFAR10(str(folder), download=True)


@dataclass(frozen=True)
class CifarReader:
    """Items are (batch file, row number)."""

    root: Path

    def read(self, items: Sequence[tuple[str, int]]) -> Rows:
        batches = {name: read_batch(self.root / name) for name in sorted({name for name, _ in items})}
        images = np.stack([batches[name][0][i] for name, i in items])
        labels = np.array([batches[name][1][i] for name, i in items], dtype=np.int64)
        return Rows([f"cifar10-{name}-{i:05d}" for name, i in items], images, labels)


def open_cifar(data: DataConfig, seed: int) -> ListedSource:
    """The source: its own test batch; validation is a seeded share of the training batches."""
    root = find_data(data, _root, LAYOUT, _download)
    rows = {name: [(name, i) for i in range(len(read_batch(root / name)[0]))] for name in BATCHES}
    train, valid = holdout([row for name in BATCHES[:5] for row in rows[name]], data.valid_fraction, seed)
    splits: dict[Split, list[tuple[str, int]]] = {"train": train, "valid": valid, "test": rows["test_batch"]}
    inputs = Inputs(fs.LocalFileSystem(), str(root), BATCHES)
    return ListedSource(data, seed, CifarReader(root), splits, inputs)
