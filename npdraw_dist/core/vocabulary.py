"""Turns conditions, which are classes or words, into tokens.

A token is an entry's position in the vocabulary plus 1. Token 0 is no word, so a condition of zeros is none.
A word that training did not have is read as pieces, whose entries begin with `##`.
Shapes: B conditions, A tokens of one, V entries of a vocabulary.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from npdraw_dist.core.errors import UserError

Condition: TypeAlias = int | str  # a class by number or name, or words
WORD = re.compile(r"\w+")
PIECE = "##"
NEAREST = 3  # similar entries that an error names
# Largest numbers of whole words, of which the most frequent stay, and of pieces.
MOST_WHOLE, PIECES = 8192, 512
INNER = 4  # pieces of a whole word that enter its embedding
MOST_CLASSES = 1 << 16  # a label that is larger than this is no class


def as_python(value: Any) -> Any:
    """Turns numbers and arrays of NumPy, torch and Arrow into Python's own, also inside a list or tuple."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [as_python(one) for one in value] if isinstance(value, list | tuple) else value


def plain(given: Any, count: int | None = None) -> Condition | list[Condition]:
    """A condition or a list of conditions, from any type that `as_python` takes.

    Raises UserError on any other type, or on a list whose length is not `count`.
    """
    found = as_python(given)
    if isinstance(found, int | str):
        return found
    each: list[Condition] = list(found) if isinstance(found, Iterable) else [found]
    for one in each:
        if not isinstance(one, int | str):
            raise UserError(f"a condition is a class or words, not {one!r}")
    if count not in (None, len(each)):
        raise UserError(f"there are {len(each)} conditions for {count} drawings")
    return each


def one_each(given: Any, count: int) -> list[Condition]:
    """`count` conditions; a single one is repeated. Takes and raises the same as `plain`."""
    found = plain(given, count)
    return found if isinstance(found, list) else [found] * count


def words_in(text: str) -> list[str]:
    """`Man: dark skin tone` -> man, dark, skin, tone."""
    return WORD.findall(text.lower())


class Vocabulary:
    """The conditions that a prior takes (`config.networks.PriorNetwork`).

    kind: none, class or words. entries: names of classes, or words and pieces. tokens: A.
    """

    def __init__(self, kind: str, entries: Sequence[str], tokens: int) -> None:
        self.kind, self.entries, self.tokens = kind, entries, tokens

    @classmethod
    def of(cls, prior: Any) -> "Vocabulary":
        """prior: its settings, a `config.networks.PriorNetwork`."""
        return cls(prior.condition, prior.vocabulary, prior.condition_tokens)

    def require(self) -> None:
        """Raises UserError if the prior takes no condition."""
        if self.kind == "none":
            raise UserError("the model takes no condition; train one with --prior.condition class or words")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Entry -> its token."""
        return {entry: number for number, entry in enumerate(self.entries, 1)}

    @cached_property
    def labels(self) -> list[int]:
        """The number of each class, which is its name if all names are numbers, or else its position."""
        numbers = all(entry.isdecimal() and entry == str(int(entry)) for entry in self.entries)
        return [int(entry) if numbers else place for place, entry in enumerate(self.entries)]

    @property
    def known(self) -> list[str]:
        """The classes or whole words among the entries."""
        return [entry for entry in self.entries if not entry.startswith(PIECE)]

    def rows(self, conditions: Sequence[Condition]) -> Tensor:
        """The tokens (B, A). Raises UserError on an unknown class or word, and names similar ones."""
        return torch.tensor([self._tokens(condition) for condition in conditions])

    def of_labels(self, labels: Tensor, classes: Sequence[str]) -> Tensor:
        """labels (B,), indices of `classes` -> (B, 1); 0 for a class without an entry and any other label."""
        numbers = torch.tensor([*(self.numbers.get(name, 0) for name in classes), 0])
        known = (labels >= 0) & (labels < len(classes))
        return numbers[torch.where(known, labels, -1)][:, None]

    def read(self, texts: Sequence[str]) -> Tensor:
        """The tokens (B, A) of texts, where an unknown word becomes its pieces."""
        rows = [[token for word in words_in(text) for token in self.pieces(word)] for text in texts]
        return torch.tensor([self._padded(row) for row in rows], dtype=torch.int64).view(-1, self.tokens)

    def _tokens(self, condition: Condition) -> list[int]:
        self.require()
        if self.kind == "class":
            return [self._class(condition)]
        words = words_in(str(condition))
        if not words:
            raise UserError(f"the condition {condition!r} has no word")
        for word in words:
            if word not in self.numbers:
                raise UserError(f"the model does not know the word {word!r}{self._nearest(word)}")
        if len(words) > self.tokens:
            raise UserError(f"the condition {condition!r} has more than {self.tokens} words")
        return self._padded([self.numbers[word] for word in words])

    def _class(self, condition: Condition) -> int:
        name = str(condition)
        if isinstance(condition, str) and name in self.numbers:
            return self.numbers[name]
        if name.isdecimal() and int(name) in self.labels:
            return 1 + self.labels.index(int(name))
        raise UserError(f"the model does not know the class {name!r}{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        close = get_close_matches(name, self.known, NEAREST) or self.known[:NEAREST]
        return f" (near: {', '.join(close)})"

    def pieces(self, word: str, longest: int | None = None) -> list[int]:
        """Cuts a word into entries, always the longest that fits next; a letter without one is dropped.

        longest: most letters of the first piece. If None, a known word is its own only piece.
        """
        found, start = list[int](), 0
        while start < len(word):
            last = len(word) if start or longest is None else longest
            for end in range(last, start, -1):
                names = [PIECE + word[start:end]] if start else [word[:end], PIECE + word[:end]]
                known = [self.numbers[name] for name in names if name in self.numbers]
                if known:
                    found.append(known[0])
                    break
            else:
                end = start + 1
            start = end
        return found

    def inner(self) -> Tensor:
        """(1 + V, INNER), for each token of a word the tokens of its pieces, padded with 0."""
        found = torch.zeros(1 + len(self.entries), INNER, dtype=torch.int64)
        if self.kind == "words":
            for word in self.known:
                pieces = self.pieces(word, len(word) - 1)[:INNER]
                found[self.numbers[word], : len(pieces)] = torch.tensor(pieces, dtype=torch.int64)
        return found

    def _padded(self, tokens: Sequence[int]) -> list[int]:
        return [*tokens, *[0] * self.tokens][: self.tokens]


def learned(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The entries of a vocabulary: words by frequency, then their pieces by byte-pair merges.

    counts: the number of times that each word occurs. Merges: Sennrich et al. 2016.
    """
    if not counts:
        return ()
    from tokenizers import Tokenizer, models, trainers

    words = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WHOLE]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=PIECES, show_progress=False))
    pieces = sorted(tokenizer.get_vocab(), key=lambda piece: (len(piece), piece))
    return (*words, *(PIECE + piece for piece in pieces))
