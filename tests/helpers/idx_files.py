"""A tiny MNIST in its own format."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def idx(array: NDArray[np.uint8]) -> bytes:
    """An array as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path) -> None:
    """The four files of 20 training and 10 test images."""
    folder.mkdir(parents=True)
    for prefix, n in (("train", 20), ("t10k", 10)):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.full((n, 28, 28), 9, np.uint8)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.zeros(n, np.uint8)))
