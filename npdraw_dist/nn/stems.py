"""How the prior embeds the canvas drawn so far (paper section 3.1).

A table has a vector for each pair of place and part. Their running sum over steps replaces the first layer of
a network that sees the canvas.
Shapes: B batch, T steps, L places, K parts, D = C * P * P pixels of a part, R rank, W channels of a token;
`...` any axes.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.schema import TableKind
from npdraw_dist.config.spec import ModelSpec

RANK_PER_CHANNEL = 4  # R / W
START = 0.02  # standard deviation of a table's first numbers
# Standard deviations of the factors' first numbers. Adam moves all numbers by about the same, so small
# factors turn faster.
PLACE, CODE = 0.2, 0.3

Lookup = Callable[[Tensor, Tensor], Tensor]  # where, what (...) -> (..., W)


class JointTable(nn.Module):
    """Free vectors: L * K * W parameters. Pairs that the training never saw keep their first values."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.parts = spec.parts
        self.weight = nn.Parameter(torch.randn(spec.grid.places * spec.parts, spec.prior.width))

    def start(self) -> None:
        """Draws the first vectors, small."""
        nn.init.normal_(self.weight, std=START)

    def set_bank(self, parts: Tensor) -> None:
        """Copies the parts (K, C, P, P) if the vectors depend on their pixels."""

    def forward(self, where: Tensor, what: Tensor) -> Tensor:
        """where, what (...) -> (..., W)."""
        return F.embedding(where * self.parts + what, self.weight)

    def weights(self) -> Tensor:
        """All vectors, (L * K, W), in order of places, then parts."""
        return self.weight

    def fixed(self) -> Lookup:
        """`forward` while the weights do not change: what all calls share is computed once."""
        return self


class FactorisedTable(nn.Module):
    """`out` (place_l * code_k), elementwise, with R * (L + K) parameters; methods as of `JointTable`.

    A code is a small network of the part's pixels, plus a free vector. So a pair that the training never saw
    is known from its place and its part, and a part from those that look like it.
    """

    bank_parts: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width, channels = spec.prior.width, spec.image_shape[0]
        rank = RANK_PER_CHANNEL * width
        self.register_buffer("bank_parts", torch.zeros(spec.parts, channels, spec.patch, spec.patch))
        self.place = nn.Parameter(PLACE * torch.randn(spec.grid.places, rank))
        self.code = nn.Parameter(CODE * torch.randn(spec.parts, rank))
        self.pixels = nn.Sequential(
            nn.Linear(channels * spec.patch**2, rank), nn.GELU(), nn.Linear(rank, rank)
        )
        self.out = nn.Linear(rank, width, bias=False)

    def start(self) -> None:
        nn.init.normal_(self.out.weight, std=START / PLACE / math.sqrt(self.out.in_features))

    def set_bank(self, parts: Tensor) -> None:
        self.bank_parts.copy_(parts)

    def codes(self) -> Tensor:
        """(K, R)."""
        x = self.bank_parts.flatten(1)
        x = (x - x.mean()) / x.std(correction=0).clamp(min=1e-6)
        codes: Tensor = self.pixels(x) + self.code
        return codes

    def forward(self, where: Tensor, what: Tensor) -> Tensor:
        return self.fixed()(where, what)

    def weights(self) -> Tensor:
        places, parts = (torch.arange(len(x), device=x.device) for x in (self.place, self.code))
        found: Tensor = self(places.repeat_interleave(len(parts)), parts.repeat(len(places)))
        return found

    def fixed(self) -> Lookup:
        codes = self.codes()
        return lambda where, what: self.out(F.embedding(where, self.place) * F.embedding(what, codes))


TABLES: dict[TableKind, type[JointTable | FactorisedTable]] = {
    "joint": JointTable,
    "factorised": FactorisedTable,
}
