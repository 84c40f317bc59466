"""The prior over a grid of codes: NP-DRAW's Transformer (`nn.prior`), where each step draws its place's code.

p(z) = prod_l p(z_l | z_1 ... z_(l-1)), the grid read row by row. As in `nn.prior`, the embedding of what is
drawn so far is a running sum with one table entry for each pair of place and code; there is no *whether*,
and *where* is given. Sizes, dropout and weight decay are those of section `prior`.
Shapes: B batch, L places, K codes, W channels of a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import PriorSpec
from npdraw_dist.nn.blocks import TransformerBlock
from npdraw_dist.nn.precision import ExactLinear
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import chosen
from npdraw_dist.nn.tables import START


class CodePrior(nn.Module):
    """p(z) of codes z (B, L), int64 below K."""

    def __init__(self, settings: PriorSpec, places: int, codes: int) -> None:
        super().__init__()
        self.places, self.codes, width = places, codes, settings.width
        self.position = nn.Parameter(START * torch.randn(places, width))
        self.drawn = nn.Parameter(START * torch.randn(places * codes, width))
        self.last = nn.Linear(width, width)  # the previous code, in addition to the sum
        self.blocks = nn.ModuleList(TransformerBlock(settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.state = nn.Linear(width, width)
        self.head = ExactLinear(width, codes)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (B, L) -> logits (B, L, K) of each place, given the codes before it."""
        first = self.codes * torch.arange(self.places, device=z.device)
        before = F.pad(F.embedding(z + first, self.drawn), (0, 0, 1, 0))[:, :-1]
        x = before.cumsum(1) + self.last(before) + self.position
        for block in self.blocks:
            x = block(x)
        return self._logits(x)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), (B,) nats, exact."""
        return chosen(self(z), z).sum(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None, temperature: float = 1.0) -> Tensor:
        """n grids of codes (n, L), place by place with a KV cache. temperature divides the logits."""
        blocks = [block for block in self.blocks if isinstance(block, TransformerBlock)]
        caches = [block.cache(n, self.places, self.position) for block in blocks]
        canvas = self.position.new_zeros(n, self.position.shape[1])
        before, found = canvas, []
        for place in range(self.places):
            x = (canvas + self.last(before) + self.position[place])[:, None]
            for block, cache in zip(blocks, caches, strict=True):
                x = block.step(x, place, cache)
            z = categorical_sample(self._logits(x)[:, 0] / temperature, generator)
            found.append(z)
            before = F.embedding(z + self.codes * place, self.drawn)
            canvas = canvas + before
        return torch.stack(found, 1)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.gelu(self.state(self.norm(x))))
        return logits
