"""Pieces that several networks share. GroupNorm everywhere: BatchNorm would make ranks disagree.

Shapes: B batch, H heads, T steps, D channels of a head, W channels of a token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions at one width, the last one zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Dropout(nn.Module):
    """Zeroes each value with probability `p` in training, and scales the others up.

    On a CPU, where random numbers come one after another, a value takes 16 random bits: a third of the
    time of torch's own, which was a twentieth of a training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.kept = p, max(round((1 - p) * 2**16), 1)  # of 2^16

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.kept == 2**16:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        mask = (bits < self.kept - 2**15).to(x.dtype)
        return x * mask.mul_(2**16 / self.kept)


class Cache:
    """Keys and values of the steps so far, in buffers made once: (B, H, T, D) each."""

    def __init__(self, batch: int, heads: int, steps: int, width: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, heads, steps, width)
        self.values = like.new_empty(batch, heads, steps, width)


class TransformerBlock(nn.Module):
    """Pre-norm causal self-attention and MLP."""

    def __init__(self, width: int, heads: int, head_width: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W); step t sees steps up to t."""
        batch, steps, _ = x.shape
        q, k, v = self._qkv(x)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, steps, -1)))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def step(self, x: Tensor, step: int, cache: Cache) -> Tensor:
        """(B, 1, W) -> (B, 1, W): `forward` of step `step` alone, those before from the cache."""
        q, k, v = self._qkv(x)
        cache.keys[:, :, step], cache.values[:, :, step] = k[:, :, 0], v[:, :, 0]
        keys, values = cache.keys[:, :, : step + 1], cache.values[:, :, : step + 1]
        attended = F.scaled_dot_product_attention(q, keys, values)
        x = x + self.out(attended.transpose(1, 2).reshape(len(x), 1, -1))
        return x + self.mlp(self.norm2(x))

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, steps, _ = x.shape
        shape = (batch, steps, 3, self.heads, self.head_width)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        return q, k, v

    def cache(self, batch: int, steps: int, like: Tensor) -> Cache:
        return Cache(batch, self.heads, steps, self.head_width, like)


def scaled_init(blocks: nn.ModuleList) -> None:
    """Scales what each block adds by 1 / sqrt(2 depth), so that depth does not blow up the sum."""
    for block in blocks:
        assert isinstance(block, TransformerBlock)
        last = block.mlp[2]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            block.out.weight.mul_((2 * len(blocks)) ** -0.5)
            last.weight.mul_((2 * len(blocks)) ** -0.5)
