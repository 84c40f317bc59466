"""Ids that come in more than one shard, found with 8 bytes of memory an id."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray


def repeated_ids(order: Sequence[str], read: Callable[[str], Sequence[str]]) -> dict[str, set[str]]:
    """shard name -> ids that an earlier shard in `order` has too.

    `read` gives the ids of a shard, no two alike; it is called by several threads, a second time for
    the shards in which the 64-bit hash of an id comes again.
    """

    def hashes(shard: str) -> NDArray[np.uint64]:
        return np.array([_hash(name) for name in read(shard)], np.uint64)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(hashes, order))
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    suspects = values[counts > 1]
    seen: set[str] = set()
    repeated: dict[str, set[str]] = {}
    for shard, own in zip(order, found, strict=True):
        if not np.isin(own, suspects).any():
            continue
        names = [
            name for name, is_suspect in zip(read(shard), np.isin(own, suspects), strict=True) if is_suspect
        ]
        if again := seen.intersection(names):
            repeated[shard] = again
        seen.update(names)
    return repeated


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
