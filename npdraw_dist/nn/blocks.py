"""Layers that several networks share. They avoid BatchNorm, as its statistics would differ between workers.

bfloat16 has 8 significant bits, so a logit of 500 would be off by 1, which changes log q(z|x) by 1 nat. Thus
layers that compute logits, log-probabilities or likelihood parameters are "exact": they stay in float32 under
autocast.
Shapes: B batch, H heads, T steps, D channels of a head, W channels of a token.
"""

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.networks import BlockKind
from npdraw_dist.config.spec import PriorSpec
from npdraw_dist.core.noise import Dropout


def at_least_float32(x: Tensor) -> Tensor:
    """Converts x to float32, unless its type is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exactly(like: Tensor) -> AbstractContextManager[object]:
    """A context that disables autocast on the device of `like`. Inputs also need `at_least_float32`."""
    kind = like.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)  # the query raises an error for `meta`
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class _Exact(nn.Module):
    """Mixin that makes a layer compute in float32 under autocast, and keeps its state_dict keys."""

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Any:
        with exactly(input):
            return super().forward(at_least_float32(input), *args, **options)


class ExactLinear(_Exact, nn.Linear):
    """`nn.Linear` in float32."""


class ExactConv2d(_Exact, nn.Conv2d):
    """`nn.Conv2d` in float32."""


class ExactConvTranspose2d(_Exact, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` in float32."""


class ExactLSTM(_Exact, nn.LSTM):  # type: ignore[misc]  # nn.LSTM.forward has overloads
    """`nn.LSTM` in float32, including its state, where rounding errors would accumulate over steps."""


class ExactLSTMCell(_Exact, nn.LSTMCell):
    """`nn.LSTMCell` in float32, including its state."""


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def zeroed(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """Sets weights and biases of the layer to zero, and returns it."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions of equal width with dropout between them; the second's weights start at zero."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(self.dropout(F.silu(self.norm2(h))))


Cache = tuple[Tensor, Tensor]  # the state of a block after the earlier steps; the batch is the first axis


class CausalBlock(nn.Module, ABC):
    """A pre-norm residual block that mixes each step with earlier steps, then applies an MLP to each step."""

    mlp: nn.Sequential

    def __init__(self, settings: PriorSpec) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(settings.width), nn.LayerNorm(settings.width)
        self.dropout = Dropout(settings.dropout)

    @abstractmethod
    def mixed(self, x: Tensor) -> Tensor:
        """Mixes steps, (B, T, W) -> (B, T, W); the output of step t depends only on the steps up to t."""

    @abstractmethod
    def mixed_step(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        """One step of `mixed`, (B, 1, W) -> (B, 1, W). Reads earlier steps from `cache`; adds this step."""

    @abstractmethod
    def cache(self, batch: int, steps: int, like: Tensor) -> Cache:
        """The cache before the first step, with the dtype and device of `like`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W); the output of step t depends only on the steps up to t."""
        x = x + self.dropout(self.mixed(x))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def step(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        """Computes one step of `forward` without dropout, (B, 1, W) -> (B, 1, W); cache: see `mixed_step`."""
        x = x + self.mixed_step(x, step, cache)
        return x + self.mlp(self.norm2(x))


def _mlp(settings: PriorSpec, out: nn.Linear) -> nn.Sequential:
    """Makes a block's MLP. Scales the initial weights of its last layer and of `out` by 1 / sqrt(2 depth)."""
    first, last = nn.Linear(settings.width, settings.mlp), nn.Linear(settings.mlp, settings.width)
    with torch.no_grad():
        for layer in (out, last):
            layer.weight.mul_((2 * settings.depth) ** -0.5)
    return nn.Sequential(first, nn.GELU(), last)


class TransformerBlock(CausalBlock):
    """Causal self-attention. The cache has buffers for the keys and values of all T steps, (B, H, T, D)."""

    def __init__(self, settings: PriorSpec) -> None:
        super().__init__(settings)
        width, self.heads, self.head_width = settings.width, settings.attention_heads, settings.head_width
        self.qkv = nn.Linear(width, 3 * self.heads * self.head_width)
        self.out = nn.Linear(self.heads * self.head_width, width)
        self.mlp = _mlp(settings, self.out)

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self._qkv(x)
        return self._merged(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def mixed_step(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        q, k, v = self._qkv(x)
        keys, values = cache
        keys[:, :, step], values[:, :, step] = k[:, :, 0], v[:, :, 0]
        seen = slice(step + 1)
        return self._merged(F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen]))

    def cache(self, batch: int, steps: int, like: Tensor) -> Cache:
        shape = (batch, self.heads, steps, self.head_width)
        return like.new_empty(shape), like.new_empty(shape)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, W) -> queries, keys and values, (B, H, T, D) each."""
        batch, steps, _ = x.shape
        shape = (batch, steps, 3, self.heads, self.head_width)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _merged(self, attended: Tensor) -> Tensor:
        """Concatenates and projects the heads, (B, H, T, D) -> (B, T, W)."""
        return self.out(attended.transpose(1, 2).flatten(2))


class LSTMBlock(CausalBlock):
    """An LSTM over the steps (Hochreiter and Schmidhuber 1997). The cache has h and c of the LSTM, (B, W)."""

    def __init__(self, settings: PriorSpec) -> None:
        super().__init__(settings)
        width = settings.width
        self.lstm = ExactLSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, width)
        self.mlp = _mlp(settings, self.out)

    def mixed(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.norm1(x))[0])

    def mixed_step(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        hidden, state = self.lstm(self.norm1(x), tuple(kept[None] for kept in cache))
        for kept, new in zip(cache, state, strict=True):
            kept.copy_(new[0])
        return self.out(hidden)

    def cache(self, batch: int, steps: int, like: Tensor) -> Cache:
        shape = (batch, self.lstm.hidden_size)
        return like.new_zeros(shape), like.new_zeros(shape)


BLOCKS: dict[BlockKind, type[CausalBlock]] = {"transformer": TransformerBlock, "lstm": LSTMBlock}


def causal_blocks(settings: PriorSpec) -> nn.ModuleList:
    return nn.ModuleList(BLOCKS[settings.network](settings) for _ in range(settings.depth))
