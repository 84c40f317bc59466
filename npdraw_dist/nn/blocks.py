"""Layers that several networks share. All use GroupNorm, since BatchNorm makes ranks disagree.

In bfloat16, of 8 significant bits, a logit of 500 has an error of 1, a nat of q(z|x). So the layers that give
logits, log-probabilities or parameters of a likelihood are exact: they stay float32 under autocast.
Shapes: B batch, H heads, T steps, D channels of a head, W channels of a token.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.config.spec import PriorSpec
from npdraw_dist.core.noise import Dropout


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 where autocast left less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exactly(like: Tensor) -> AbstractContextManager[object]:
    """Disables autocast on the device of `like`; pass arguments through `at_least_float32`."""
    kind = like.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)  # meta has no autocast: asking is an error
    return torch.autocast(kind, enabled=False) if on else nullcontext()


class _Exact(nn.Module):
    """A layer that computes in float32 under autocast. The names of its weights are those of the layer."""

    def forward(self, input: Tensor, *args: Any, **options: Any) -> Any:
        with exactly(input):
            return super().forward(at_least_float32(input), *args, **options)


class ExactLinear(_Exact, nn.Linear):
    """`nn.Linear` in float32."""


class ExactConv2d(_Exact, nn.Conv2d):
    """`nn.Conv2d` in float32."""


class ExactConvTranspose2d(_Exact, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` in float32."""


class ExactLSTMCell(_Exact, nn.LSTMCell):
    """`nn.LSTMCell` in float32, its state too, since errors of a state add up over steps."""


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def zeroed(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """The layer, whose weights and biases start at zero."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions at one width, with dropout between. The weights of the second start at zero."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        added: Tensor = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return x + added


class Cache(NamedTuple):
    """Keys and values of the steps so far, in buffers of all T steps: (B, H, T, D) each."""

    keys: Tensor
    values: Tensor


class TransformerBlock(nn.Module):
    """Pre-norm causal self-attention and MLP. Their output layers start 1 / sqrt(2 depth) times as large."""

    def __init__(self, settings: PriorSpec) -> None:
        super().__init__()
        width, self.heads, self.head_width = settings.width, settings.attention_heads, settings.head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * self.heads * self.head_width)
        self.out = nn.Linear(self.heads * self.head_width, width)
        first, last = nn.Linear(width, settings.mlp), nn.Linear(settings.mlp, width)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        self.dropout = Dropout(settings.dropout)
        with torch.no_grad():
            for layer in (self.out, last):
                layer.weight.mul_((2 * settings.depth) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W); step t sees the steps up to t."""
        q, k, v = self._qkv(x)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self._merged(attended))
        added: Tensor = self.dropout(self.mlp(self.norm2(x)))
        return x + added

    def step(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        """`forward` of one step alone, (B, 1, W) -> (B, 1, W). `cache` holds the steps before it."""
        q, k, v = self._qkv(x)
        cache.keys[:, :, step], cache.values[:, :, step] = k[:, :, 0], v[:, :, 0]
        keys, values = cache.keys[:, :, : step + 1], cache.values[:, :, : step + 1]
        x = x + self._merged(F.scaled_dot_product_attention(q, keys, values))
        added: Tensor = self.mlp(self.norm2(x))
        return x + added

    def cache(self, batch: int, steps: int, like: Tensor) -> Cache:
        """An empty cache with the type and device of `like`."""
        shape = (batch, self.heads, steps, self.head_width)
        return Cache(like.new_empty(shape), like.new_empty(shape))

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, W) -> queries, keys and values, (B, H, T, D) each."""
        batch, steps, _ = x.shape
        shape = (batch, steps, 3, self.heads, self.head_width)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _merged(self, attended: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, T, W)."""
        merged: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return merged
