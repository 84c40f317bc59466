"""Tables of vectors with which a prior embeds a canvas, as a running sum over its pairs of place and part.

Shapes: L places, K parts, C channels, P patch side, D = C * P * P pixels of a part, R rank, W channels of a
token; `...` any axes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.networks import TableKind
from npdraw_dist.nn.blocks import at_least_float32, exactly

RANK_PER_CHANNEL = 4  # R / W
START = 0.02  # standard deviation of the numbers in a table's initial vectors
# Standard deviations of the initial factors. Adam moves all numbers by about the same amount, so small
# factors change faster in relation to their size.
PLACE, CODE = 0.2, 0.3

PartShape = tuple[int, int, int] | None  # (C, P, P) of a part; None if parts are codes without pixels


class Table(nn.Module, ABC):
    """Maps where, what (...) to the vector (..., W) that the part adds to the running sum."""

    @abstractmethod
    def start(self) -> None:
        """Initialises the vectors with small random numbers."""

    def set_bank(self, parts: Tensor) -> None:
        """Copies the parts (K, C, P, P) of the training bank, if the vectors depend on their pixels."""

    @abstractmethod
    def weights(self) -> Tensor:
        """All vectors, (L * K, W), ordered by place, then by part."""

    def cached(self) -> AbstractContextManager[None]:
        """A context that caches values which several calls need. Weights must not change inside it."""
        return nullcontext()


class JointTable(Table):
    """A trained vector for each pair of place and part. A pair not in the data keeps its initial vector."""

    def __init__(self, places: int, parts: int, width: int, shape: PartShape = None) -> None:
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.randn(places * parts, width))

    def start(self) -> None:
        nn.init.normal_(self.weight, std=START)

    def forward(self, where: Tensor, what: Tensor) -> Tensor:
        return F.embedding(where * self.parts + what, self.weight)

    def weights(self) -> Tensor:
        return self.weight


class PartCodes(nn.Module):
    """A small network that maps the pixels of each part to a code, (K, R). Its weights do not depend on K.

    Pixels are standardised by mean and deviation of the training bank, so a part has the same code in every
    bank.
    """

    bank_parts: Tensor
    moments: Tensor

    def __init__(self, parts: int, shape: tuple[int, int, int], rank: int, bias: bool = True) -> None:
        """bias: whether the last layer has a bias, which is the same for all parts."""
        super().__init__()
        self.register_buffer("bank_parts", torch.zeros(parts, *shape))
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))
        self.first, self.second = nn.Linear(math.prod(shape), rank), nn.Linear(rank, rank, bias=bias)

    def set_bank(self, parts: Tensor) -> None:
        """Copies the parts (K, C, P, P) of the training bank, and computes their mean and deviation."""
        self.bank_parts.copy_(parts)
        self.moments[0], self.moments[1] = parts.mean(), parts.std(correction=0).clamp(min=1e-6)

    def forward(self) -> Tensor:
        mean, deviation = self.moments
        return self.second(F.gelu(self.first((self.bank_parts.flatten(1) - mean) / deviation)))


class CodeTable(Table):
    """A table whose vectors combine a code of the part, (R,), with parameters of the place."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[str, Tensor] | None = None

    @abstractmethod
    def codes(self) -> Tensor:
        """The codes of all parts, (K, R)."""

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Returns the result of `make`. Inside `cached`, `make` is called only once for each `name`."""
        cache = self._cache  # read once, as another thread may leave its `cached` context meanwhile
        if cache is None:
            return make()
        if name not in cache:
            cache[name] = make()
        return cache[name]

    @contextmanager
    def cached(self) -> Iterator[None]:
        if self._cache is not None:
            yield
            return
        self._cache = {}
        try:
            yield
        finally:
            self._cache = None


class FactorisedTable(CodeTable):
    """Vectors `out`(place_l * code_k), with an elementwise product and R * (L + K) parameters.

    A code is a trained vector plus, if parts have pixels, a function of these pixels. So the vector of an
    unseen pair follows from its place and its part, and the vector of a rare part from similar parts.
    """

    def __init__(self, places: int, parts: int, width: int, shape: PartShape = None) -> None:
        super().__init__()
        rank = RANK_PER_CHANNEL * width
        self.place = nn.Parameter(PLACE * torch.randn(places, rank))
        self.code = nn.Parameter(CODE * torch.randn(parts, rank))
        self.look = None if shape is None else PartCodes(parts, shape, rank)
        self.out = nn.Linear(rank, width, bias=False)

    def start(self) -> None:
        nn.init.normal_(self.out.weight, std=START / PLACE / math.sqrt(self.out.in_features))

    def set_bank(self, parts: Tensor) -> None:
        if self.look is not None:
            self.look.set_bank(parts)

    def codes(self) -> Tensor:
        look = self.look
        return self.code if look is None else self.once("codes", lambda: look() + self.code)

    def forward(self, where: Tensor, what: Tensor) -> Tensor:
        return self.out(F.embedding(where, self.place) * F.embedding(what, self.codes()))

    def weights(self) -> Tensor:
        return self.out(self.place[:, None] * self.codes()).flatten(0, 1)


class PixelTable(CodeTable):
    """Vectors `out`(place_l * code_k) + `common`(code_k), where code_k depends on the part's pixels alone.

    The table also gives the logits of *what*: <state * head_place_l, u_k> + c_k, with u_k and c_k linear in
    code_k. So the prior depends on a part only through its pixels, and another bank, even with another K, can
    replace the training bank.
    """

    def __init__(self, places: int, parts: int, width: int, shape: PartShape = None) -> None:
        super().__init__()
        if shape is None:
            raise ValueError("prior.table pixels needs parts that have pixels")
        rank = RANK_PER_CHANNEL * width
        self.look = PartCodes(parts, shape, rank)
        self.place = nn.Parameter(PLACE * torch.randn(places, rank))
        self.out, self.common = (nn.Linear(rank, width, bias=False) for _ in range(2))
        self.head_place = nn.Parameter(torch.ones(places, width))
        self.head = nn.Linear(rank, width + 1, bias=False)  # a bias would add the same to all logits

    def start(self) -> None:
        deviation = START / CODE / math.sqrt(self.out.in_features)
        nn.init.normal_(self.out.weight, std=deviation / PLACE)
        nn.init.normal_(self.common.weight, std=deviation)

    def set_bank(self, parts: Tensor) -> None:
        self.look.set_bank(parts)

    def codes(self) -> Tensor:
        return self.once("codes", self.look)

    def forward(self, where: Tensor, what: Tensor) -> Tensor:
        codes = self.codes()
        at_place = self.out(F.embedding(where, self.place) * F.embedding(what, codes))
        return at_place + F.embedding(what, self.anywhere())

    def weights(self) -> Tensor:
        codes = self.codes()
        return (self.out(self.place[:, None] * codes) + self.anywhere()).flatten(0, 1)

    def anywhere(self) -> Tensor:
        """The term of each part's vector that is the same at all places, (K, W)."""
        return self.once("common", lambda: self.common(self.codes()))

    def logits(self, state: Tensor, where: Tensor) -> Tensor:
        """Logits of *what*, (..., K) float32, given the state (..., W) and `where` (...)."""
        with exactly(state):
            scaled = at_least_float32(state) * F.embedding(where, self.head_place)
            return F.linear(scaled, *self.head_weights())

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """The weights u (K, W) and c (K,) of the logits."""
        head = self.once("head", lambda: self.head(at_least_float32(self.codes())))
        return head[:, :-1], head[:, -1]


TABLES: dict[TableKind, type[JointTable | FactorisedTable | PixelTable]] = {
    "joint": JointTable,
    "factorised": FactorisedTable,
    "pixels": PixelTable,
}
