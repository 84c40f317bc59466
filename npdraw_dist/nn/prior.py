"""The prior p(z), a causal Transformer that reads the canvas drawn so far (paper section 3.1, eq. 1-2).

p(z) = prod_t p(whether_t | h_t) p(where_t | whether_t, h_t) p(what_t | where_t, whether_t, h_t).
The authors render the canvas before each step and embed it by convolutions (kind `authors`). This prior
embeds the canvas as a running sum, to which each step adds the vector of its place and part from a table.
A prior p(z|c) with a condition c, such as a class or words, reads tokens of c before the first step. Token 0
means no word, and all zeros mean no condition. Training drops some conditions, so that one network learns
both p(z|c) and p(z).
Shapes: B batch, A tokens of a condition, T steps, L places, K parts, W channels of a token; `...` any axes.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import ModelSpec, PriorSpec
from npdraw_dist.core.noise import Noise, uniform
from npdraw_dist.core.parts import PartSequence
from npdraw_dist.core.vocabulary import Vocabulary
from npdraw_dist.nn.blocks import CausalBlock, ExactLinear, causal_blocks
from npdraw_dist.nn.relaxations import categorical_sample
from npdraw_dist.nn.steps import StepLogits, log_prob
from npdraw_dist.nn.tables import START, TABLES, PixelTable
from npdraw_dist.system.errors import UserError, require_positive

# The probabilities with which training drops a whole condition (Ho and Salimans 2022), and a single word.
DROPPED, WORD_DROPPED = 0.15, 0.1


class StepPrior(nn.Module, ABC):
    """Computes p(z) from a state before each step, and samples z. ahead: number of tokens before step 0."""

    ahead: int = 0
    position: nn.Parameter
    blocks: nn.ModuleList
    norm: nn.Module
    whether_head: nn.Module
    where_head: nn.Module | None

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.places, self.parts, self.steps = spec.grid.places, spec.parts, spec.steps

    @abstractmethod
    def forward(self, z: PartSequence, condition: Tensor | None = None) -> StepLogits:
        """Logits of every step given the true steps before it (teacher forcing).

        condition: (B, A) or (1, A) int64 tokens; None means no condition.
        """

    @abstractmethod
    def tokens(
        self, z: PartSequence, condition: Tensor | None = None
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yields the first `ahead` tokens (B, W), then the token of each step.

        After a step's token the caller fills this step of z. If the caller replaces the rows of z by its rows
        `index` (B,), it sends `index` to the generator.
        """

    def whether_logits(self, h: Tensor) -> Tensor:
        """Logits of *whether*, (...), given the state h (..., W)."""
        return self.whether_head(h)[..., 0]

    def where_logits(self, h: Tensor) -> Tensor | None:
        """Logits of *where*, (..., L), given the state h (..., W); None if step t draws at place t."""
        return None if self.where_head is None else self.where_head(h)

    @abstractmethod
    def what_logits(self, h: Tensor, where: Tensor) -> Tensor:
        """Logits of *what*, (..., K), given the state h (..., W) and `where` (...)."""

    def set_bank(self, parts: Tensor) -> None:
        """Copies the parts (K, C, P, P), if the prior depends on their pixels."""

    def log_prob(self, z: PartSequence, condition: Tensor | None = None) -> Tensor:
        """Exact log p(z|condition), (B,) nats."""
        return log_prob(self(z, condition).float32(), z)

    def logits(self, h: Tensor, where: Tensor) -> StepLogits:
        """Logits of T steps given the states h (B, T, W) before them; *what* is also given `where` (B, T)."""
        return StepLogits(self.whether_logits(h), self.where_logits(h), self.what_logits(h, where))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: Noise = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        distinct_places: bool = False,
    ) -> PartSequence:
        """Draws n sequences z ~ p(z), with a KV cache. temperature divides all logits.

        top_k: only the k most likely parts are drawn. distinct_places: no place is drawn twice. `log_prob`
        ignores these settings. Raises UserError if temperature is not above 0, or top_k is less than 1.
        """
        if not temperature > 0:
            raise UserError(f"temperature is {temperature}; it must be above 0")
        if top_k is not None:
            require_positive("top_k", top_k)
        where = torch.zeros(n, self.steps, dtype=torch.int64, device=self.position.device)
        z = PartSequence(where.bool(), where, where.clone())
        used = where.new_zeros(n, self.places, dtype=torch.bool) if distinct_places else None
        places = torch.arange(self.places, device=where.device)
        for t, h in enumerate(self.states(z)):
            z.whether[:, t], z.where[:, t], z.what[:, t] = self.draw_step(
                h, t, generator, temperature, top_k, used
            )
            if used is not None:
                used |= (z.where[:, t, None] == places) & z.whether[:, t, None]
        return z if self.spec.where_given else z.canonical()

    def states(
        self, z: PartSequence, condition: Tensor | None = None
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yields the state h (B, W) before each step, with a KV cache.

        After each step the caller fills z, as for `tokens`.
        """
        blocks = [block for block in self.blocks if isinstance(block, CausalBlock)]
        caches = [block.cache(len(z), self.ahead + self.steps, self.position) for block in blocks]
        tokens, index = self.tokens(z, condition), None
        with self.cached():
            for number in range(self.ahead + self.steps):
                x = tokens.send(index)[:, None]
                for block, cache in zip(blocks, caches, strict=True):
                    x = block.step(x, number, cache)
                if number < self.ahead:
                    continue
                index = yield self.norm(x[:, 0])
                if index is not None:
                    caches = [(first[index], second[index]) for first, second in caches]

    def cached(self) -> AbstractContextManager[None]:
        """A context that caches values which several calls need. Weights must not change inside it."""
        return nullcontext()

    def draw_step(
        self,
        h: Tensor,
        step: int,
        generator: Noise = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        used: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples *whether*, *where* and *what* of a step, each (B,), given the state h (B, W) before it.

        used: (B, L) bool, places that have been drawn; they are excluded until all are used.
        """
        chance = torch.sigmoid(self.whether_logits(h) / temperature)
        whether = uniform(chance.shape, generator, h) < chance
        places = self.where_logits(h)
        if places is None:
            where = torch.full_like(whether, step, dtype=torch.int64)
        else:
            places = places / temperature
            if used is not None:
                places = places.masked_fill(used & ~used.all(1, keepdim=True), -torch.inf)
            where = categorical_sample(places, generator)
        logits = self.what_logits(h, where) / temperature
        if top_k is not None and top_k < self.parts:
            least = logits.topk(top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return whether, where, categorical_sample(logits, generator)


class Prior(StepPrior):
    """The prior that `spec` describes, which embeds the canvas as a running sum of vectors from a table."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        prior, width = spec.prior, spec.prior.width
        places, parts = self.places, self.parts
        self.position = nn.Parameter(torch.randn(spec.steps, width) * 0.02)
        shape = (spec.image_shape[0], spec.patch, spec.patch)
        self.drawn = TABLES[prior.table](places, parts, width, shape)  # vector of a part at its place
        by_pixels = isinstance(self.drawn, PixelTable)
        self.part = None if by_pixels else nn.Embedding(parts, width)
        self.place = nn.Embedding(places, width)  # marks the place as covered
        self.blank = nn.Parameter(torch.randn(width) * 0.02)  # added if the previous step drew nothing
        self.last = nn.Linear(width, width)  # maps the previous step's vector
        self.drawn.start()
        for table in (self.part, self.place):
            if table is not None:
                nn.init.normal_(table.weight, std=START)
        self.blocks = causal_blocks(prior)
        self.norm = nn.LayerNorm(width)
        self.whether_head = ExactLinear(width, 1)
        self.where_head = None if spec.where_given else ExactLinear(width, places)
        self.what_state = nn.Linear(width, width)
        self.what_head = None if by_pixels else ExactLinear(width, parts)
        self.ahead = prior.condition_tokens
        self.told = ConditionTokens(prior) if self.ahead else None
        self.chosen_place = (
            nn.Embedding(places, width) if prior.heads == "chained" and not spec.where_given else None
        )

    def set_bank(self, parts: Tensor) -> None:
        self.drawn.set_bank(parts)

    def cached(self) -> AbstractContextManager[None]:
        return self.drawn.cached()

    def forward(self, z: PartSequence, condition: Tensor | None = None) -> StepLogits:
        with self.cached():
            step = self._embed(z.whether, z.where, z.what)  # (B, T, W)
            before = F.pad(step, (0, 0, 1, 0))[:, :-1]
            nothing = F.pad(~z.whether, (1, 0))[:, :-1]  # the first step has no previous one, so False
            x = self._token(before.cumsum(1), before, nothing, self.position)
            if self.told is not None:
                x = torch.cat([self.told(condition, len(x)), x], 1)
            for block in self.blocks:
                x = block(x)
            return self.logits(self.norm(x[:, self.ahead :]), z.where)

    def _embed(self, whether: Tensor, where: Tensor, what: Tensor) -> Tensor:
        """The vector that a step adds to the sum, (..., W); 0 if it draws nothing."""
        added: Tensor = self.drawn(where, what) + self.place(where)
        if self.part is not None:
            added = added + self.part(what)
        return added * whether[..., None]

    def _token(self, canvas: Tensor, before: Tensor, nothing: Tensor, position: Tensor) -> Tensor:
        return canvas + self.last(before) + nothing[..., None] * self.blank + position

    def what_logits(self, h: Tensor, where: Tensor) -> Tensor:
        state = self.what_state(h)
        if self.chosen_place is not None:
            state = state + self.chosen_place(where)
        state = F.gelu(state)
        if self.what_head is not None:
            return self.what_head(state)
        assert isinstance(self.drawn, PixelTable)
        return self.drawn.logits(state, where)

    def tokens(
        self, z: PartSequence, condition: Tensor | None = None
    ) -> Generator[Tensor, Tensor | None, None]:
        if self.told is not None:
            yield from self.told(condition, len(z)).unbind(1)
        before = self.position.new_zeros(len(z), self.position.shape[1])
        nothing = torch.zeros_like(z.whether[:, 0])
        canvas = before
        for t in range(self.steps):
            index = yield self._token(canvas, before, nothing, self.position[t])
            if index is not None:
                canvas = canvas[index]
            before = self._embed(z.whether[:, t], z.where[:, t], z.what[:, t])
            nothing = ~z.whether[:, t]
            canvas = canvas + before


class ConditionTokens(nn.Module):
    """Embeds a condition as (B, A, W), by a vector for each word plus the vectors of the word's pieces."""

    inner: Tensor

    def __init__(self, prior: PriorSpec) -> None:
        super().__init__()
        vocabulary = Vocabulary.of(prior)
        self.tokens = vocabulary.tokens
        self.register_buffer("inner", vocabulary.inner(), persistent=False)
        self.word = nn.Parameter(torch.randn(len(self.inner), prior.width) * START)
        self.position = nn.Parameter(torch.randn(self.tokens, prior.width) * START)

    def forward(self, condition: Tensor | None, batch: int) -> Tensor:
        if condition is None:
            condition = self.inner.new_zeros(1, self.tokens)
        return (self._vectors(condition) + self.position).expand(batch, -1, -1)

    def entries(self) -> Tensor:
        """Vectors (1 + V, W) that vocabulary entries add to a position's vector; the first is for no word."""
        return self._vectors(torch.arange(len(self.inner), device=self.inner.device))

    def _vectors(self, tokens: Tensor) -> Tensor:
        inner = self.inner[tokens]  # (..., pieces)
        of_pieces = (F.embedding(inner, self.word) * (inner > 0)[..., None]).sum(-2)
        return F.embedding(tokens, self.word) + of_pieces


def dropped(condition: Tensor, noise: Noise) -> Tensor:
    """Sets some conditions (B, A) and some words of other conditions to 0 at random, for training."""
    drawn = uniform((len(condition), 1 + condition.shape[1]), noise, condition.float())
    each = WORD_DROPPED if condition.shape[1] > 1 else 0.0
    return condition * (drawn[:, :1] >= DROPPED) * (drawn[:, 1:] >= each)


class GivenPrior(StepPrior):
    """A trained prior with fixed conditions, which samples, completes and scores by p(z|c).

    Its logits are u + guidance (c - u), where c are the logits with the condition and u the logits without it
    (Ho and Salimans 2022). Guidance 1 gives p(z|c), and guidance 0 gives p(z). With any other guidance,
    a state consists of the states with and without the condition.
    """

    def __init__(self, prior: StepPrior, condition: Tensor, guidance: float = 1.0) -> None:
        """condition: tokens (1, A) for all drawings, or (B, A) for B drawings."""
        super().__init__(prior.spec)
        self.of, self.guidance = prior, guidance
        self.position, self.condition = prior.position, condition

    def state_dict(self, *args: Any, **named: Any) -> Any:
        """Raises UserError, because a conditioned model cannot be saved or get another bank."""
        raise UserError("the model has a condition; save the model, or change its bank, before `given`")

    def _mixed(self, found: Sequence[Tensor]) -> Tensor:
        """Combines the logits computed under each of `_conditions`."""
        if len(found) == 1:
            return found[0]
        given, free = found
        return free + self.guidance * (given - free)

    def _conditions(self) -> list[Tensor | None]:
        """The conditions whose states are computed: c and None, or only one of them if guidance is 1 or 0."""
        condition = self.condition.to(self.position.device)  # the model may have moved to another device
        alone: dict[float, list[Tensor | None]] = {0.0: [None], 1.0: [condition]}
        return alone.get(self.guidance, [condition, None])

    def forward(self, z: PartSequence, condition: Tensor | None = None) -> StepLogits:
        found: list[StepLogits] = [self.of(z, self._rows(each, z)) for each in self._conditions()]
        places = [each.where for each in found if each.where is not None]
        return StepLogits(
            self._mixed([each.whether for each in found]),
            self._mixed(places) if places else None,
            self._mixed([each.what for each in found]),
        )

    def _rows(self, condition: Tensor | None, z: PartSequence) -> Tensor | None:
        """Repeats the conditions if z has several draws of each of the B drawings, ordered by draw."""
        if condition is None or len(condition) in (1, len(z)):
            return condition
        return condition.repeat(len(z) // len(condition), 1)

    def tokens(
        self, z: PartSequence, condition: Tensor | None = None
    ) -> Generator[Tensor, Tensor | None, None]:
        raise NotImplementedError("a conditioned prior takes its states from the prior")

    def states(
        self, z: PartSequence, condition: Tensor | None = None
    ) -> Generator[Tensor, Tensor | None, None]:
        walks, index = [self.of.states(z, condition) for condition in self._conditions()], None
        for _ in range(self.steps):
            index = yield torch.cat([walk.send(index) for walk in walks], -1)

    def _halves(self, h: Tensor) -> tuple[Tensor, ...]:
        return h.chunk(len(self._conditions()), -1)

    def whether_logits(self, h: Tensor) -> Tensor:
        return self._mixed([self.of.whether_logits(half) for half in self._halves(h)])

    def where_logits(self, h: Tensor) -> Tensor | None:
        found = [self.of.where_logits(half) for half in self._halves(h)]
        places = [logits for logits in found if logits is not None]
        return self._mixed(places) if places else None

    def what_logits(self, h: Tensor, where: Tensor) -> Tensor:
        return self._mixed([self.of.what_logits(half, where) for half in self._halves(h)])
