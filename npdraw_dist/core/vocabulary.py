"""Turns conditions, which are classes or words, into tokens.

A token is an entry's position in the vocabulary plus 1. Token 0 means no word, and all zeros mean no
condition. A word that was not in the training data is read as pieces, whose entries begin with `##`.
Shapes: B conditions, A tokens of each condition, V entries of a vocabulary.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from npdraw_dist.system.errors import UserError

Condition: TypeAlias = int | str  # a class by number or name, or words
WORD = re.compile(r"\w+")
PIECE = "##"
# An error names all entries if they are at most LISTED, else the NEAREST similar ones.
LISTED, NEAREST = 12, 3
# Largest numbers of whole words (the most frequent ones) and of pieces.
MOST_WHOLE, PIECES = 8192, 512
INNER = 4  # largest number of pieces in the embedding of a whole word
MOST_CLASSES = 1 << 16  # the labels of classes are smaller than this number


def as_python(value: Any) -> Any:
    """Turns numbers and arrays of NumPy, torch and Arrow into Python objects, also inside a list or tuple."""
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
            raise UserError(f"a condition must be a class or words, not {one!r}")
    if count not in (None, len(each)):
        raise UserError(f"there are {len(each)} conditions for {count} drawings")
    return each


def one_each(given: Any, count: int) -> list[Condition]:
    """A list of `count` conditions; a single condition is repeated. Arguments and errors: see `plain`."""
    found = plain(given, count)
    return found if isinstance(found, list) else [found] * count


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, such as man, dark, skin, tone for `Man: dark skin tone`."""
    return WORD.findall(text.lower())


class Vocabulary:
    """The conditions that a prior takes (`config.networks.PriorNetwork`).

    entries: names of classes, or words and pieces. tokens: A, tokens per condition. column: the column of the
    data that contains the conditions.
    """

    kind: ClassVar[str] = "none"
    column: ClassVar[str] = ""

    def __init__(self, entries: Sequence[str] = (), tokens: int = 0) -> None:
        self.entries, self.tokens = entries, tokens

    @staticmethod
    def of(prior: Any) -> "Vocabulary":
        """The vocabulary of a prior. prior: its settings, a `config.networks.PriorNetwork`."""
        return VOCABULARIES[prior.condition](prior.vocabulary, prior.condition_tokens)

    @staticmethod
    def found(classes: Sequence[str], counts: Mapping[str, int]) -> Sequence[str]:
        """The entries for training images with these classes. counts: word -> number of its occurrences."""
        return ()

    def require(self) -> None:
        """Raises UserError if the prior takes no condition."""
        if self.kind == "none":
            raise UserError("the model takes no condition; train one with --prior.condition class or words")

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Entry -> its token."""
        return {entry: number for number, entry in enumerate(self.entries, 1)}

    @property
    def known(self) -> list[str]:
        """The entries that users can request."""
        return list(self.entries)

    def rows(self, conditions: Sequence[Condition]) -> Tensor:
        """(B, A) tokens. Raises UserError, which names known entries, on an unknown class or word."""
        self.require()
        return torch.tensor([self.requested(condition) for condition in conditions])

    def requested(self, condition: Condition) -> list[int]:
        """The A tokens of one condition. Raises UserError as `rows` does."""
        raise NotImplementedError

    def read(self, values: Sequence[Any], classes: Sequence[str] = ()) -> Tensor:
        """B values of the data's column -> (B, A) tokens, 0 if unknown. classes: name of each label."""
        raise NotImplementedError

    def words_of(self, text: str) -> frozenset[str]:
        """The words of a condition; conditions with the same words are equal."""
        return frozenset(text.split())

    @property
    def attributes(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        """Attribute -> alternative -> its words; empty if entries do not exclude each other."""
        return {}

    def inner(self) -> Tensor:
        """int64 (1 + V, INNER): for each token, the tokens of its word's pieces, padded with 0."""
        return torch.zeros(1 + len(self.entries), INNER, dtype=torch.int64)

    def _nearest(self, name: str) -> str:
        if len(self.known) <= LISTED:
            return f"; it knows {', '.join(self.known)}"
        close = get_close_matches(name, self.known, NEAREST) or self.known[:NEAREST]
        return f" (near: {', '.join(close)})"


class Classes(Vocabulary):
    """Conditions that are classes, given by name or number."""

    kind, column = "class", "label"

    @staticmethod
    def found(classes: Sequence[str], counts: Mapping[str, int]) -> Sequence[str]:
        return classes

    def words_of(self, text: str) -> frozenset[str]:
        return frozenset([text])

    @property
    def attributes(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        return {"class": {name: frozenset([name]) for name in self.entries}}

    @cached_property
    def labels(self) -> list[int]:
        """The number of each class: its name if all names are numbers, or else its position."""
        numbers = all(entry.isdecimal() and entry == str(int(entry)) for entry in self.entries)
        return [int(entry) if numbers else place for place, entry in enumerate(self.entries)]

    def requested(self, condition: Condition) -> list[int]:
        name = str(condition)
        if isinstance(condition, str) and name in self.numbers:
            return [self.numbers[name]]
        if name.isdecimal() and int(name) in self.labels:
            return [1 + self.labels.index(int(name))]
        raise UserError(f"the model does not know the class {name!r}{self._nearest(name)}")

    def read(self, values: Sequence[Any], classes: Sequence[str] = ()) -> Tensor:
        """values: labels. Without `classes`, the name of a class is its label."""
        names = classes or [str(number) for number in range(len(self.entries))]
        labels = torch.tensor(values)
        numbers = torch.tensor([*(self.numbers.get(name, 0) for name in names), 0])
        known = (labels >= 0) & (labels < len(names))
        return numbers[torch.where(known, labels, -1)][:, None]


class Words(Vocabulary):
    """Conditions that are words about an image."""

    kind, column = "words", "words"

    @staticmethod
    def found(classes: Sequence[str], counts: Mapping[str, int]) -> Sequence[str]:
        return learned(counts)

    @property
    def known(self) -> list[str]:
        """The entries that are whole words, not pieces of words."""
        return [entry for entry in self.entries if not entry.startswith(PIECE)]

    def requested(self, condition: Condition) -> list[int]:
        words = words_in(str(condition))
        if not words:
            raise UserError(f"the condition {condition!r} has no word")
        for word in words:
            if word not in self.numbers:
                raise UserError(f"the model does not know the word {word!r}{self._nearest(word)}")
        if len(words) > self.tokens:
            raise UserError(f"the condition {condition!r} has more than {self.tokens} words")
        return self._padded([self.numbers[word] for word in words])

    def read(self, values: Sequence[Any], classes: Sequence[str] = ()) -> Tensor:
        """values: texts. An unknown word is read as its pieces."""
        rows = [[token for word in words_in(text) for token in self.pieces(word)] for text in values]
        return torch.tensor([self._padded(row) for row in rows], dtype=torch.int64).view(-1, self.tokens)

    def pieces(self, word: str, longest: int | None = None) -> list[int]:
        """Cuts a word into entries, each the longest that fits, and returns their tokens.

        A letter without an entry is dropped. longest: largest number of letters in the first piece. With
        None, a known word is one piece.
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
        found = super().inner()
        for word in self.known:
            pieces = self.pieces(word, len(word) - 1)[:INNER]
            found[self.numbers[word], : len(pieces)] = torch.tensor(pieces, dtype=torch.int64)
        return found

    def _padded(self, tokens: Sequence[int]) -> list[int]:
        return [*tokens, *[0] * self.tokens][: self.tokens]


VOCABULARIES = {of.kind: of for of in (Vocabulary, Classes, Words)}


def learned(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The entries of a vocabulary of words: words by frequency, then the pieces of a byte-pair encoding.

    counts: word -> number of times that it occurs. Encoding: Sennrich et al. 2016.
    """
    if not counts:
        return ()
    from tokenizers import Tokenizer, models, trainers

    words = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WHOLE]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=PIECES, show_progress=False))
    pieces = sorted(tokenizer.get_vocab(), key=lambda piece: (len(piece), piece))
    return (*words, *(PIECE + piece for piece in pieces))
