"""Finds ids that several shards contain. For each shard, a small file holds the hashes of its ids.

Tasks first join the hashes of GROUP shards in one file. Then each task takes a range of hashes and reads that
part of the joined files. So each small file is read once, and neither the memory of a task nor the work of
the driver grows with the images. Shapes: N ids in a file.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from npdraw_dist.distributed.tasks import map_items
from npdraw_dist.system.storage import in_threads, read_bytes, write_bytes

Hash = tuple[int, int]  # 128 bits, so that no two of a billion ids have the same hash
Hashes = NDArray[np.uint64]  # (N, 3): two halves of a hash, index of the shard; sorted by the first column

RANGES = 256  # largest number of ranges, one for each value of a hash's first byte
IDS_AT_ONCE = 1 << 23  # number of ids that a task compares; each takes 24 bytes
GROUP = 512  # number of shards whose hashes are joined in one file


def hash_of(image_id: str) -> Hash:
    digest = hashlib.blake2b(image_id.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def write_hashes(filesystem: fs.FileSystem, path: str, ids: Sequence[str]) -> None:
    """Writes the hashes of the ids of a shard, in the order of the ids."""
    hashes = np.array([hash_of(name) for name in ids], "<u8").reshape(len(ids), 2)
    write_bytes(filesystem, path, hashes.tobytes())


def repeated_ids(
    filesystem: fs.FileSystem, folder: str, shards: Sequence[str], ids: int
) -> dict[str, set[Hash]]:
    """Shard name -> hashes of its ids that an earlier shard also has.

    shards: names of the shards, earlier ones first; <folder>/<name>.ids has a shard's hashes. ids: the
    approximate number of ids in these files.
    """
    starts = range(0, len(shards), GROUP)
    join = partial(_join, filesystem, folder, tuple(shards))
    joined = sorted(map_items(starts, join) if len(starts) > 1 else map(join, starts))
    tasks = min(max(-(-ids // IDS_AT_ONCE), 1), RANGES)
    ranges = list(pairwise(np.linspace(0, RANGES, tasks + 1).astype(int).tolist()))
    find = partial(_find, filesystem, tuple(joined))
    found: dict[str, set[Hash]] = {}
    for result in map_items(ranges, find) if len(ranges) > 1 else map(find, ranges):
        for number, hashes in result.items():
            found.setdefault(shards[number], set()).update(hashes)
    for path in joined:
        filesystem.delete_file(path)
    return found


def _join(filesystem: fs.FileSystem, folder: str, shards: tuple[str, ...], start: int) -> str:
    """Joins the hashes of GROUP shards, beginning with index `start`, in one file. Returns its path."""
    own = shards[start : start + GROUP]
    contents = in_threads(lambda name: read_bytes(filesystem, f"{folder}/{name}.ids"), own)
    found = [np.frombuffer(content, "<u8").reshape(-1, 2) for content in contents]
    numbers = np.repeat(np.arange(start, start + len(own), dtype=np.uint64), [len(one) for one in found])
    hashes = np.column_stack([np.concatenate(found).astype(np.uint64), numbers])
    hashes = hashes[np.argsort(hashes[:, 0], kind="stable")]
    before = np.searchsorted(hashes[:, 0] >> np.uint64(56), np.arange(RANGES + 1)).astype("<u8")
    path = f"{folder}/joined-{start // GROUP:05d}"
    write_bytes(filesystem, path, before.tobytes() + hashes.astype("<u8").tobytes())
    return path


def _find(filesystem: fs.FileSystem, joined: Sequence[str], ends: tuple[int, int]) -> dict[int, set[Hash]]:
    """Shard index -> hashes that an earlier shard also has. ends: range [first, last) of the first byte."""
    found = in_threads(lambda path: _read(filesystem, path, *ends), joined)
    hashes = np.concatenate([np.zeros((0, 3), np.uint64), *found])
    hashes = hashes[np.lexsort(hashes.T[::-1])]  # equal hashes are adjacent, in the order of the shards
    repeated: dict[int, set[Hash]] = {}
    for high, low, number in hashes[1:][(hashes[1:, :2] == hashes[:-1, :2]).all(1)].tolist():
        repeated.setdefault(number, set()).add((high, low))
    return repeated


def _read(filesystem: fs.FileSystem, path: str, first: int, last: int) -> Hashes:
    with filesystem.open_input_file(path) as file:
        before = np.frombuffer(file.read(8 * (RANGES + 1)), "<u8")
        file.seek(int(8 * (RANGES + 1 + 3 * before[first])))
        content = file.read(int(24 * (before[last] - before[first])))
    return np.frombuffer(content, "<u8").astype(np.uint64).reshape(-1, 3)
