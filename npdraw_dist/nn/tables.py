"""What a prior knows of a part at a place: the vector that it adds to the running sum of the canvas.

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
START = 0.02  # standard deviation of a table's first numbers
# Standard deviations of the factors' first numbers. Adam moves all numbers by about the same, so small
# factors turn faster.
PLACE, CODE = 0.2, 0.3

PartShape = tuple[int, int, int] | None  # (C, P, P) of a part; None if it has no pixels


class Table(nn.Module, ABC):
    """What a part at a place adds to the running sum: where, what (...) -> (..., W)."""

    @abstractmethod
    def start(self) -> None:
        """Draws the first vectors, small."""

    def set_bank(self, parts: Tensor) -> None:
        """Copies the parts (K, C, P, P) of the training, if the vectors depend on their pixels."""

    @abstractmethod
    def weights(self) -> Tensor:
        """All vectors, (L * K, W), in order of places, then parts."""

    def held(self) -> AbstractContextManager[None]:
        """Computes what all calls share once for those inside, where the weights do not change."""
        return nullcontext()


class JointTable(Table):
    """Free vectors: L * K * W parameters. Pairs that the training never saw keep their first values."""

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
    """A code of each part, (K, R), by a small network of its pixels. The weights do not depend on K.

    Pixels are scaled by mean and deviation of the bank of the training, so a part has the same code in any
    other bank.
    """

    bank_parts: Tensor
    moments: Tensor

    def __init__(self, parts: int, shape: tuple[int, int, int], rank: int, bias: bool = True) -> None:
        """bias: whether codes have one, the same for all parts."""
        super().__init__()
        self.register_buffer("bank_parts", torch.zeros(parts, *shape))
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))
        self.first, self.second = nn.Linear(math.prod(shape), rank), nn.Linear(rank, rank, bias=bias)

    def set_bank(self, parts: Tensor) -> None:
        """Copies the parts (K, C, P, P) of the training, and their mean and deviation."""
        self.bank_parts.copy_(parts)
        self.moments[0], self.moments[1] = parts.mean(), parts.std(correction=0).clamp(min=1e-6)

    def forward(self) -> Tensor:
        mean, deviation = self.moments
        return self.second(F.gelu(self.first((self.bank_parts.flatten(1) - mean) / deviation)))


class CodeTable(Table):
    """A vector made of a code of the part, (R,), and of numbers of the place."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[str, Tensor] | None = None

    @abstractmethod
    def codes(self) -> Tensor:
        """(K, R)."""

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns; inside `held` the first result of this name."""
        held = self._held  # read once: another thread may end its block meanwhile
        if held is None:
            return make()
        if name not in held:
            held[name] = make()
        return held[name]

    @contextmanager
    def held(self) -> Iterator[None]:
        if self._held is not None:
            yield
            return
        self._held = {}
        try:
            yield
        finally:
            self._held = None


class FactorisedTable(CodeTable):
    """`out` (place_l * code_k), elementwise, with R * (L + K) parameters.

    A code is a free vector, plus a small network of the part's pixels if it has any. So a pair that the
    training never saw is known from its place and its part, and a part from those that look like it.
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
    """`out` (place_l * code_k) + `common` code_k, where the part's pixels alone make code_k.

    It has the logits of *what* too: <state * head_place_l, u_k> + c_k, with u_k and c_k linear in code_k. So
    all that a prior knows of a part follows from its pixels, and another bank, also of another K, can take
    the place of the one that it was trained with.
    """

    def __init__(self, places: int, parts: int, width: int, shape: PartShape = None) -> None:
        super().__init__()
        if shape is None:
            raise ValueError("a table of pixels needs parts with pixels")
        rank = RANK_PER_CHANNEL * width
        self.look = PartCodes(parts, shape, rank)
        self.place = nn.Parameter(PLACE * torch.randn(places, rank))
        self.out, self.common = (nn.Linear(rank, width, bias=False) for _ in range(2))
        self.head_place = nn.Parameter(torch.ones(places, width))
        self.head = nn.Linear(rank, width + 1, bias=False)  # a bias would be the same for all parts

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
        """What a part adds at any place, (K, W)."""
        return self.once("common", lambda: self.common(self.codes()))

    def logits(self, state: Tensor, where: Tensor) -> Tensor:
        """The logits of *what*, (..., K), in float32, given the state (..., W) and `where` (...)."""
        with exactly(state):
            scaled = at_least_float32(state) * F.embedding(where, self.head_place)
            return F.linear(scaled, *self.head_weights())

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """u (K, W) and c (K,)."""
        head = self.once("head", lambda: self.head(at_least_float32(self.codes())))
        return head[:, :-1], head[:, -1]


TABLES: dict[TableKind, type[JointTable | FactorisedTable | PixelTable]] = {
    "joint": JointTable,
    "factorised": FactorisedTable,
    "pixels": PixelTable,
}
