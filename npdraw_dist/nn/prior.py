"""The prior p(z): a causal Transformer over the canvas drawn so far (paper section 3.1, eq. 1-2).

p(z) = prod_t p(whether_t | h_t) p(where_t | whether_t, h_t) p(what_t | where_t, whether_t, h_t).
The authors render the canvas before each step and embed it by convolutions (`stem: conv`). Here the
embedding of the canvas is linear in what is drawn, so it is a running sum of one table entry a step
and no canvas is rendered. Shapes: B batch, T steps, L places, K parts, W channels of a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.nn.blocks import TransformerBlock, scaled_init
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.stems import ConvStem
from npdraw_dist.nn.steps import StepLogits, log_prob


class Prior(nn.Module):
    """p(z) of `spec`. Input and output are steps; no image is seen."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        prior, width = spec.prior, spec.prior.width
        places, parts = spec.grid.places, spec.parts
        self.places, self.parts, self.steps = places, parts, spec.steps
        self.position = nn.Parameter(torch.randn(spec.steps, width) * 0.02)
        self.drawn = nn.Embedding(places * parts, width)  # the part on the canvas, at its place
        self.part = nn.Embedding(parts, width)
        self.place = nn.Embedding(places, width)  # coverage of the place
        self.blank = nn.Parameter(torch.randn(width) * 0.02)  # the step before drew nothing
        self.last = nn.Linear(width, width)  # the step before, apart from the sum
        for table in (self.drawn, self.part, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.stem = ConvStem(spec) if prior.stem == "conv" else None
        self.blocks = nn.ModuleList(
            TransformerBlock(width, prior.attention_heads, prior.head_width, prior.mlp, prior.dropout)
            for _ in range(prior.depth)
        )
        scaled_init(self.blocks)
        self.norm = nn.LayerNorm(width)
        self.whether_head = nn.Linear(width, 1)
        self.where_head = None if spec.aligned else nn.Linear(width, places)
        self.what_state = nn.Linear(width, width)
        self.what_head = nn.Linear(width, parts)
        self.chosen_place = (
            nn.Embedding(places, width) if prior.heads == "chained" and not spec.aligned else None
        )

    def set_bank(self, parts: Tensor) -> None:
        """Takes over the parts (K, C, P, P), for a stem that renders them."""
        if self.stem is not None:
            self.stem.bank_parts.copy_(parts)

    def forward(self, z: PartSequence) -> StepLogits:
        """Logits of every step given the true steps before it (teacher forcing)."""
        step = self._embed(z.whether, z.where, z.what)  # (B, T, W)
        before = F.pad(step, (0, 0, 1, 0))[:, :-1]
        nothing = F.pad(~z.whether, (1, 0))[:, :-1]  # the first step has none before it
        canvas = before.cumsum(1) if self.stem is None else self.stem(z)
        x = self._token(canvas, before, nothing, self.position)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x), z.where)

    def log_prob(self, z: PartSequence) -> Tensor:
        """(B,) nats, exact."""
        return log_prob(self(z).exact(), z)

    def _embed(self, whether: Tensor, where: Tensor, what: Tensor) -> Tensor:
        """(..., W): what a step adds to the canvas; 0 where it draws nothing."""
        table = self.drawn(where * self.parts + what) + self.part(what) + self.place(where)
        return table * whether[..., None]

    def _token(self, canvas: Tensor, before: Tensor, nothing: Tensor, position: Tensor) -> Tensor:
        return canvas + self.last(before) + nothing[..., None] * self.blank + position

    def logits(self, h: Tensor, where: Tensor) -> StepLogits:
        """Of every step, given the states h (B, T, W) before it; what is that of `where` (B, T)."""
        whether = self.whether_head(h)[..., 0]
        places = None if self.where_head is None else self.where_head(h)
        return StepLogits(whether, places, self._what(h, where))

    def _what(self, h: Tensor, where: Tensor) -> Tensor:
        state = self.what_state(h)
        if self.chosen_place is not None:
            state = state + self.chosen_place(where)
        return self.what_head(F.gelu(state))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        distinct_places: bool = False,
    ) -> PartSequence:
        """n drawings, step by step with a KV cache.

        temperature divides all logits; top_k keeps that many parts; distinct_places never draws
        twice at a place. Both change the sampler only: log-probabilities are the plain prior's.
        """
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        device = self.position.device
        z = PartSequence(
            torch.zeros(n, self.steps, dtype=torch.bool, device=device),
            torch.zeros(n, self.steps, dtype=torch.int64, device=device),
            torch.zeros(n, self.steps, dtype=torch.int64, device=device),
        )
        used = torch.zeros(n, self.places, dtype=torch.bool, device=device)
        blocks = [block for block in self.blocks if isinstance(block, TransformerBlock)]
        caches = [block.cache(n, self.steps, self.position) for block in blocks]
        before = self.position.new_zeros(n, self.position.shape[1])
        canvas = before if self.stem is None else self.stem.after(z)
        for t in range(self.steps):
            nothing = ~z.whether[:, t - 1] if t else torch.zeros_like(z.whether[:, 0])
            x = self._token(canvas, before, nothing, self.position[t])[:, None]
            for block, cache in zip(blocks, caches, strict=True):
                x = block.step(x, t, cache)
            taken = used if distinct_places else None
            self.draw(self.norm(x[:, 0]), t, z, taken, temperature, top_k, generator)
            before = self._embed(z.whether[:, t], z.where[:, t], z.what[:, t])
            canvas = canvas + before if self.stem is None else self.stem.after(z)
        return z.canonical() if not self.spec.aligned else z

    def draw(
        self,
        h: Tensor,
        t: int,
        z: PartSequence,
        used: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Writes step t of z, drawn given the state h (B, W); a place that is `used` (B, L) is not drawn."""
        chance = torch.sigmoid(self.whether_head(h)[:, 0] / temperature)
        noise = torch.rand(chance.shape, generator=generator, device=h.device, dtype=h.dtype)
        z.whether[:, t] = noise < chance
        if self.where_head is None:
            z.where[:, t] = t
        else:
            places = self.where_head(h) / temperature
            if used is not None:
                places = places.masked_fill(used & ~used.all(1, keepdim=True), -torch.inf)
            z.where[:, t] = categorical_sample(places, generator)
            if used is not None:
                used.scatter_(
                    1, z.where[:, t, None], z.whether[:, t, None] | used.gather(1, z.where[:, t, None])
                )
        logits = self._what(h, z.where[:, t]) / temperature
        if top_k is not None and top_k < self.parts:
            least = logits.topk(top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        z.what[:, t] = categorical_sample(logits, generator)
