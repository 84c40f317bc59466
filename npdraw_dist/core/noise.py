"""Random numbers from a generator or, in training, from a hash of the step's seed and the row.

The hash makes the noise of a row independent of how a batch is split into micro-batches and among workers.
Shapes: B rows, n = k B rows in k copies.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

# splitmix64 (Steele et al. 2014): its stride and multipliers, as signed integers.
STRIDE, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110685705
DRAW = 2**40  # strides from one draw to the next, more than a draw uses


class Ahead:
    """How many words of 64 bits a row needs for each draw of a micro-batch.

    A GPU takes longer to start a small operation than to compute it. So the words of a whole micro-batch are
    hashed at once, if the one before it shows their number. A CPU would only read them from slower memory.
    """

    def __init__(self) -> None:
        self.words: list[int] = []


class RowNoise:
    """Random numbers for B rows. Each draw gives every row new numbers.

    seed: the step's seed. rows: int64 (B,), the numbers of the rows in the step's global batch, on the device
    of the draws. A draw of n = k B rows is for k copies of the rows, one copy after another. ahead: the draws
    of the last micro-batch, which those of this one replace; the numbers do not depend on it.
    """

    def __init__(self, seed: int, rows: Tensor, ahead: Ahead | None = None) -> None:
        self.seed = seed
        self.keys = _mixed(rows.add(1).mul_(STRIDE).add_(seed))
        self.draws = 0
        self.ahead = Ahead() if ahead is None else ahead
        self.hashed = deque[Tensor]()
        if sizes := tuple(self.ahead.words):
            words = _mixed(self.keys[:, None] + _offsets(sizes, self.keys.device))
            self.hashed.extend(words.split(sizes, 1))
        self.ahead.words = []

    def shared(self, count: int) -> "RowNoise":
        """Random numbers for `count` rows that all micro-batches of a step share."""
        return RowNoise(self.seed, -2 - torch.arange(count, device=self.keys.device))

    def _words(self, count: int) -> Tensor:
        """The words of the next draw, int64 (B, count)."""
        found = self.hashed.popleft() if self.hashed else None
        if found is None or found.shape[1] != count:
            self.hashed.clear()  # this micro-batch draws other numbers than the one before
            found = _mixed(self.keys[:, None] + _places(self.draws, count, self.keys.device))
        self.draws += 1
        self.ahead.words.append(count)
        return found

    def integers(self, shape: Sequence[int], kind: torch.dtype) -> Tensor:
        """Uniform draws over all values of the integer type `kind`. shape: (n, ...)."""
        rows = len(self.keys)
        copies, rest = divmod(shape[0], rows)
        assert rest == 0, f"{shape[0]} is no multiple of {rows} rows"
        each = math.prod(shape[1:])
        words = self._words(-(-copies * each * kind.itemsize // 8))
        found = words.view(kind)[:, : copies * each]
        return found.reshape(rows, copies, each).transpose(0, 1).reshape(tuple(shape))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform float32 draws above 0 and below 1, in steps of 2^-23. shape: (n, ...)."""
        bits = (self.integers(shape, torch.int32) >> 9).bitwise_and_(2**23 - 1)
        return bits.float().add_(0.5).mul_(2.0**-23)


def _places(draw: int, count: int, device: torch.device) -> Tensor:
    """What a draw adds to the keys, int64 (count,)."""
    first = (STRIDE * DRAW * draw + 2**63) % 2**64 - 2**63
    return torch.arange(count, device=device).mul_(STRIDE).add_(first)


@lru_cache(16)
def _offsets(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """What draws of these sizes add to the keys, int64 (sum of sizes,)."""
    return torch.cat([_places(draw, count, device) for draw, count in enumerate(sizes)])


def _mixed(z: Tensor) -> Tensor:
    """int64 (...) -> int64 (...), in place; each bit of the output depends on all bits of the input."""
    z ^= (z >> 30).bitwise_and_(2**34 - 1)
    z *= FIRST
    z ^= (z >> 27).bitwise_and_(2**37 - 1)
    z *= SECOND
    z ^= (z >> 31).bitwise_and_(2**33 - 1)
    return z


Noise = torch.Generator | RowNoise | None  # None stands for torch's own generator


def uniform(shape: Sequence[int], noise: Noise, like: Tensor) -> Tensor:
    """Uniform draws in [0, 1), with the type and device of `like`."""
    if isinstance(noise, RowNoise):
        return noise.uniform(shape).to(like.dtype)
    return torch.rand(shape, generator=noise, device=like.device, dtype=like.dtype)


def normal(noise: Noise, like: Tensor) -> Tensor:
    """Standard normal draws with the shape, type and device of `like`."""
    if isinstance(noise, RowNoise):
        return noise.uniform(like.shape).mul_(2).sub_(1).erfinv_().mul_(math.sqrt(2)).to(like.dtype)
    return torch.randn(like.shape, generator=noise, device=like.device, dtype=like.dtype)


def gumbel(noise: Noise, like: Tensor) -> Tensor:
    """Standard Gumbel draws, always finite, with the shape, type and device of `like`."""
    if isinstance(noise, RowNoise):
        return noise.uniform(like.shape).log_().neg_().log_().neg_().to(like.dtype)
    exponential = torch.empty(like.shape, device=like.device, dtype=like.dtype)
    exponential.exponential_(generator=noise)
    return -exponential.clamp_(min=torch.finfo(like.dtype).tiny).log_()


class Dropout(nn.Module):
    """`nn.Dropout` with 8 random bits for each value, so `p` is rounded to a multiple of 1/256.

    noise: random numbers for the rows of a training step; if None, torch's own generator is used.
    """

    noise: RowNoise | None = None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.kept = max(round((1 - p) * 256), 1)  # number of values in 256 that are kept

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, ...)."""
        if not self.training or self.kept == 256:
            return x
        if self.noise is None:
            bits = torch.randint(-128, 128, x.shape, dtype=torch.int8, device=x.device)
        else:
            bits = self.noise.integers(x.shape, torch.int8)
        return x * (bits < self.kept - 128).to(x.dtype).mul_(256 / self.kept)


@contextmanager
def dropout_noise(module: nn.Module, noise: RowNoise | None) -> Iterator[None]:
    """Makes dropout in `module` draw from `noise` in this block."""
    layers = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    before = [layer.noise for layer in layers]
    for layer in layers:
        layer.noise = noise
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.noise = own
