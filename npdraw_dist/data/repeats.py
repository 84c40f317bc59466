"""Ids that come in several shards, found by their hashes, which lie in a small file beside each shard.

A range of hashes is the work of one task, which reads that part of every file. So neither the memory of a
task nor the work of the driver grows with the images. Shapes: N ids of a shard.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.core.storage import in_threads, write_bytes

Hash = tuple[int, int]  # 128 bits, so that two ids of a billion do not share one
Hashes = NDArray[np.uint64]  # (N, 2), sorted by the first column

RANGES = 256  # the finest split: by the first byte of a hash
IDS_AT_ONCE = 1 << 23  # ids that a task looks at, of 24 bytes each


def hash_of(image_id: str) -> Hash:
    digest = hashlib.blake2b(image_id.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def write_hashes(filesystem: fs.FileSystem, path: str, ids: Sequence[str]) -> None:
    """How many hashes there are before each range, then the hashes."""
    hashes = np.array([hash_of(name) for name in ids], np.uint64).reshape(len(ids), 2)
    hashes = hashes[np.argsort(hashes[:, 0], kind="stable")]
    starts = np.searchsorted(hashes[:, 0] >> np.uint64(56), np.arange(RANGES + 1)).astype("<u8")
    write_bytes(filesystem, path, starts.tobytes() + hashes.astype("<u8").tobytes())


def read_hashes(filesystem: fs.FileSystem, path: str, first: int = 0, last: int = RANGES) -> Hashes:
    """The hashes of the ranges [first, last)."""
    whole = (first, last) == (0, RANGES)
    with filesystem.open_input_stream(path) if whole else filesystem.open_input_file(path) as file:
        starts = np.frombuffer(file.read(8 * (RANGES + 1)), "<u8")
        if not whole:
            file.seek(int(8 * (RANGES + 1 + 2 * starts[first])))
        content = file.read(int(16 * (starts[last] - starts[first])))
    return np.frombuffer(content, "<u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class RepeatFinder:
    """The work of a task: ranges [first, last) -> name of a file -> its hashes that an earlier file has too.

    names: of the files <folder>/<name>.ids, the earlier ones first.
    """

    filesystem: fs.FileSystem
    folder: str
    names: tuple[str, ...]

    def __call__(self, ranges: tuple[int, int]) -> dict[str, set[Hash]]:
        paths = [f"{self.folder}/{name}.ids" for name in self.names]
        found = in_threads(lambda path: read_hashes(self.filesystem, path, *ranges), paths)
        hashes = np.concatenate([np.zeros((0, 2), np.uint64), *found])
        values, counts = np.unique(hashes[:, 0], return_counts=True)
        suspects = np.flatnonzero(np.isin(hashes[:, 0], values[counts > 1]))
        files = np.searchsorted(np.cumsum([len(own) for own in found]), suspects, side="right")
        seen: set[Hash] = set()
        repeated: dict[str, set[Hash]] = {}
        for file, (high, low) in zip(files.tolist(), hashes[suspects].tolist(), strict=True):
            if (high, low) in seen:
                repeated.setdefault(self.names[file], set()).add((high, low))
            seen.add((high, low))
        return repeated


def ranges_of(ids: int) -> list[tuple[int, int]]:
    """Ranges for a finder's tasks. ids: of all files together."""
    tasks = min(-(-ids // IDS_AT_ONCE), RANGES)
    return list(pairwise(np.linspace(0, RANGES, tasks + 1).astype(int).tolist()))
