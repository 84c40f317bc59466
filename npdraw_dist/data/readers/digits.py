"""scikit-learn's 1,797 real handwritten digits (UCI, 8x8), enlarged to 28x28. They need no file.

Shapes: N images, H x W pixels.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.config.schema import DataConfig
from npdraw_dist.data.identity import InputFile, Inputs
from npdraw_dist.data.rows import Rows
from npdraw_dist.data.shards import ListedSource
from npdraw_dist.data.splits import Split, stratified

SIDE = 28
INNER = 24  # the digit itself; the rest is margin, as in MNIST


def enlarge(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 8, 8) in 0..16 -> (N, 1, 28, 28) uint8: bicubic to 24x24, clipped, with a black margin."""
    small = torch.from_numpy(images).float()[:, None] / 16
    large = F.interpolate(small, size=(INNER, INNER), mode="bicubic", align_corners=False)
    margin = (SIDE - INNER) // 2
    framed = F.pad(large.clamp(0, 1), (margin, margin, margin, margin))
    return (framed * 255).round().to(torch.uint8).numpy()


class Raw(NamedTuple):
    """images: (N, 8, 8) in 0..16. target: (N,), the digit of each."""

    images: NDArray[np.float64]
    target: NDArray[np.int64]


def load_digits() -> Raw:
    """The digits that scikit-learn's function gives, without importing it, which takes as long as torch."""
    spec = importlib.util.find_spec("sklearn")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for file in (Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders):
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",")
            return Raw(rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64))
    from sklearn import datasets

    raw = datasets.load_digits()  # it knows where a later version has them
    return Raw(raw.images, raw.target)


@cache
def _arrays() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    raw = load_digits()
    return enlarge(raw.images), raw.target.astype(np.int64)


def _inputs() -> Inputs:
    """The arrays as scikit-learn gives them. `enlarge` may round differently on another processor."""
    raw = load_digits()
    content = raw.images.astype(np.uint8).tobytes() + raw.target.astype(np.uint8).tobytes()
    arrays = InputFile("load_digits", len(content), None, hashlib.sha256(content).hexdigest())
    return Inputs(fs.LocalFileSystem(), "", (), arrays=(arrays,))


@dataclass(frozen=True)
class DigitsReader:
    """Items are row numbers of scikit-learn's set."""

    def read(self, items: Sequence[int]) -> Rows:
        images, labels = _arrays()
        index = np.asarray(items, dtype=np.int64)
        return Rows([f"digits-{i:06d}" for i in items], images[index], labels[index])


def open_digits(data: DataConfig, seed: int) -> ListedSource:
    """The source, split by label."""
    if data.path is not None:
        warnings.warn("data.path is ignored: the digits come with scikit-learn", stacklevel=2)
    _, labels = _arrays()
    test, valid, train = stratified(labels, (data.test_fraction, data.valid_fraction), seed)
    splits: dict[Split, list[int]] = {"train": train, "valid": valid, "test": test}
    return ListedSource(data, seed, DigitsReader(), splits, _inputs())
