"""Decides the split of each image, by a seeded permutation of listed images or by a hash of its id."""

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
WORDS: dict[str, Split] = {  # words that Hugging Face recognises in names of files and folders
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
TEST_SEED = 0  # the test split is the same for every seed
Item = TypeVar("Item")


def _generator(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def shuffled(items: Sequence[Item], seed: int, purpose: str) -> list[Item]:
    """`items` in an order that depends only on their number, `seed` and `purpose`."""
    return [items[i] for i in _generator(seed, purpose).permutation(len(items))]


def holdout(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Returns (kept, held out), each in order. A seeded permutation chooses the round(share * N) held out."""
    chosen = set(_generator(seed, "valid").permutation(len(items))[: round(share * len(items))].tolist())
    kept = [item for i, item in enumerate(items) if i not in chosen]
    return kept, [items[i] for i in sorted(chosen)]


def stratified(labels: NDArray[np.int64], shares: tuple[float, float], seed: int) -> list[list[int]]:
    """The indices of the test, validation and training images.

    shares: the shares of test and validation images in each class.
    The images of each class are permuted and cut at the rounded cumulative shares. TEST_SEED permutes the
    class, then `seed` permutes all but the test images.
    """
    parts: list[list[int]] = [[], [], []]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[_generator(TEST_SEED, f"class-{label}").permutation(len(members))]
        test, valid = np.rint(np.cumsum(shares) * len(members)).astype(int)
        rest = members[test:]
        if seed != TEST_SEED:
            rest = rest[_generator(seed, f"class-{label}").permutation(len(rest))]
        for part, piece in zip(parts, (members[:test], *np.split(rest, [valid - test])), strict=True):
            part.extend(piece.tolist())
    return [sorted(part) for part in parts]


def grouped(
    keys: Sequence[Sequence[Hashable]], labels: NDArray[np.int64], shares: tuple[float, float], seed: int
) -> list[Split]:
    """The split of each of N items. Items that share a key, directly or through others, form a group.

    All items of a group are in one split. keys: at least one for each item. labels: (N,); a group has the
    label of its first item, and `stratified` splits the groups. shares: the shares of test and valid.
    """
    from scipy.sparse import coo_array  # slow to import, and few sources need it
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
    """The first round(fraction * N) items, at least 1, of a seeded permutation.

    A larger fraction contains a smaller one. items: a list, or a sequence with a method `take(order)`.
    """
    order = _generator(seed, "fraction").permutation(len(items))[: max(1, round(fraction * len(items)))]
    return items.take(order) if hasattr(items, "take") else [items[i] for i in order]


def unit_hash(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that depends only on the arguments and is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def stated_split(word: str | None) -> Split | None:
    """The split that a folder's name (`test`, `split=test`) or a value of a column states; None if none."""
    return None if word is None else WORDS.get(word.lower().removeprefix("split="))


def named_split(path: str) -> Split | None:
    """The split that a word in a file's name states, such as `train` in `mnist-train-000000.tar`.

    None if no word states a split, or if words state different splits.
    """
    words = re.findall("[a-z]+", path.rpartition("/")[2].lower())
    found = {WORDS[word] for word in words if word in WORDS}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class HashSplit:
    """Decides the split of a row by a stable hash of its id alone. valid, test: shares of the rows.

    fraction: kept share of the training rows. TEST_SEED draws the test split; `seed` draws all else.
    """

    seed: int
    valid: float
    test: float
    fraction: float = 1.0

    @classmethod
    def of(cls, data: DataConfig, seed: int, own: Collection[str]) -> "HashSplit":
        """Makes a rule for `data`. own: splits that the source defines; others come from training rows."""
        valid = 0.0 if "valid" in own else data.valid_fraction
        return cls(seed, valid, 0.0 if "test" in own else data.test_fraction, data.fraction)

    def split_of(self, name: str, stated: Split | None = None) -> Split:
        """The split of the row with the id `name`. stated: the split that the source states, or None."""
        if stated in ("valid", "test"):
            return stated
        if self.test and unit_hash(TEST_SEED, "split", name) < self.test:
            return "test"
        # If the seed is TEST_SEED, this hash is the same as above, so it is `test` or more.
        limit = self.test + self.valid if self.seed == TEST_SEED else self.valid / (1 - self.test)
        return "valid" if unit_hash(self.seed, "split", name) < limit else "train"

    def possible(self, stated: Split | None) -> tuple[Split, ...]:
        """The splits that `split_of` can return for rows with the split `stated`."""
        if stated in ("valid", "test"):
            return (stated,)
        return ("train", *(s for s in SPLITS[1:] if getattr(self, s) > 0))

    def kept_in(self, name: str, stated: Split | None = None) -> Split | None:
        """The split of a row; None if `fraction` leaves it out of the training split."""
        split = self.split_of(name, stated)
        return split if self.in_fraction(name, split) else None

    def in_fraction(self, name: str, split: Split) -> bool:
        """Whether `fraction` keeps the row `name` of `split`. Only training rows can be left out."""
        whole = split != "train" or self.fraction >= 1
        return whole or unit_hash(self.seed, "fraction", name) < self.fraction
