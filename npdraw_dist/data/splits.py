"""The split of each image: by a seeded permutation if all images are listed, else by a hash of the id."""

import hashlib
import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from npdraw_dist.config.schema import DataConfig

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
WORDS: dict[str, Split] = {  # as Hugging Face reads names of files and folders
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
TEST_SEED = 0  # test images do not depend on a run's seed: no run may choose by those of another
Item = TypeVar("Item")


def _generator(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def shuffled(items: Sequence[Item], seed: int, purpose: str) -> list[Item]:
    """`items` in an order that depends only on their number, `seed` and `purpose`."""
    return [items[i] for i in _generator(seed, purpose).permutation(len(items))]


def holdout(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(kept, held out): round(share * N) of a seeded permutation are held out; both in the order of items."""
    held = set(_generator(seed, "valid").permutation(len(items))[: round(share * len(items))].tolist())
    kept = [item for i, item in enumerate(items) if i not in held]
    return kept, [items[i] for i in sorted(held)]


def stratified(labels: NDArray[np.int64], shares: tuple[float, float], seed: int) -> list[list[int]]:
    """The indices of the test, validation and training images, with the given shares of each label.

    Each class is cut at the rounded cumulative shares of its own permutation, by TEST_SEED; then `seed`
    permutes what is no test image. shares: of test and valid.
    """
    parts: list[list[int]] = [[], [], []]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[_generator(TEST_SEED, f"class-{label}").permutation(len(members))]
        test, held = np.rint(np.cumsum(shares) * len(members)).astype(int)
        rest = members[test:]
        if seed != TEST_SEED:
            rest = rest[_generator(seed, f"class-{label}").permutation(len(rest))]
        for part, piece in zip(parts, (members[:test], *np.split(rest, [held - test])), strict=True):
            part.extend(piece.tolist())
    return [sorted(part) for part in parts]


def grouped(
    keys: Sequence[Sequence[Hashable]], labels: NDArray[np.int64], shares: tuple[float, float], seed: int
) -> list[Split]:
    """The split of each of N items. Those that share a key, directly or through others, are in one.

    keys: those of each item, at least one. labels: (N,); the first item of a group stands for it, and the
    groups are `stratified`. shares: of test and valid.
    """
    from scipy.sparse import coo_array  # it takes a moment, and few sources come here
    from scipy.sparse.csgraph import connected_components

    first: dict[Hashable, int] = {}
    pairs = [(first.setdefault(key, item), item) for item, own in enumerate(keys) for key in own]
    ends = tuple(np.array(pairs).T)
    _, group = connected_components(coo_array((np.ones(len(pairs)), ends), (len(keys), len(keys))))
    parts = stratified(labels[np.unique(group, return_index=True)[1]], shares, seed)
    order: tuple[Split, ...] = ("test", "valid", "train")
    split_of = {number: split for split, members in zip(order, parts, strict=True) for number in members}
    return [split_of[number] for number in group.tolist()]


def subset(items: Sequence[Item], fraction: float, seed: int) -> Sequence[Item]:
    """The first round(fraction * N), at least 1, of a seeded permutation, so that subsets are nested.

    items: a list, or what has a method `take(order)`.
    """
    order = _generator(seed, "fraction").permutation(len(items))[: max(1, round(fraction * len(items)))]
    return items.take(order) if hasattr(items, "take") else [items[i] for i in order]


def unit_hash(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends only on the three arguments, on any machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def stated_split(word: str | None) -> Split | None:
    """The split that a folder, as `test` or `split=test`, or a column names; None if it names none."""
    return None if word is None else WORDS.get(word.lower().removeprefix("split="))


def named_split(path: str) -> Split | None:
    """The split that a word in the name of a shard states, as `mnist-train-000000.tar` and `test.parquet`.

    None if there is no such word, or words of two splits.
    """
    words = re.findall("[a-z]+", path.rpartition("/")[2].lower())
    found = {WORDS[word] for word in words if word in WORDS}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class HashSplit:
    """Splits of a source that is never listed as a whole, by a stable hash of each id.

    The test split is drawn with TEST_SEED, and with `seed` the others.
    """

    seed: int
    valid: float
    test: float
    fraction: float = 1.0

    @classmethod
    def of(cls, data: DataConfig, seed: int, own: Collection[str]) -> "HashSplit":
        """own: the splits that the source states itself; the others are taken from its training rows."""
        valid = 0.0 if "valid" in own else data.valid_fraction
        return cls(seed, valid, 0.0 if "test" in own else data.test_fraction, data.fraction)

    def split_of(self, name: str, stated: Split | None = None) -> Split:
        """The split of the row `name`. stated: its split as the source states it, or None."""
        if stated in ("valid", "test"):
            return stated
        if self.test and unit_hash(TEST_SEED, "split", name) < self.test:
            return "test"
        # The hash of what is left is below 1 with any seed, and with TEST_SEED not below `test`.
        held = self.test + self.valid if self.seed == TEST_SEED else self.valid / (1 - self.test)
        return "valid" if unit_hash(self.seed, "split", name) < held else "train"

    def possible(self, stated: Split | None) -> tuple[Split, ...]:
        """The splits that rows of a file of the split `stated` can fall in."""
        if stated in ("valid", "test"):
            return (stated,)
        return ("train", *(s for s in SPLITS[1:] if getattr(self, s) > 0))

    def kept_in(self, name: str, stated: Split | None = None) -> Split | None:
        """The split of a row; None if it is one of training that the subset of `fraction` leaves out."""
        split = self.split_of(name, stated)
        return split if self.in_fraction(name, split) else None

    def in_fraction(self, name: str, split: Split) -> bool:
        """Whether the row is in the subset of `fraction`, which is one of the training split."""
        whole = split != "train" or self.fraction >= 1
        return whole or unit_hash(self.seed, "fraction", name) < self.fraction
