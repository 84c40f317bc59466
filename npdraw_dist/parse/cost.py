"""What a part at a place takes off the squared error, for all parts and places at once.

The cost of part k at place l of an empty canvas is |x_l|^2 - 2 x_l.b_k + |b_k|^2, over the pixels
of the place that the canvas has; its gain is |x_l|^2 less that, so that |x_l|^2 drops out and
2 x_l.b_k - |b_k|^2 is left: one matrix product. Units: sums of squared pixel differences.

Scores are (K, N), one column a patch: the best part of each column is then found by maxima over
the first axis, which vectorise, where an argmax over rows of K does not.
Shapes: B batch, K parts, L places, C channels, P patch side, D = C P P, N = B L, U kinds of place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank


def windows(images: Tensor, patch: int, stride: int) -> Tensor:
    """(B, C, h, w) -> (C, P, P, B, rows, columns), a view: pixel by pixel, the patch at each place."""
    return images.unfold(2, patch, stride).unfold(3, patch, stride).permute(1, 4, 5, 0, 2, 3)


def best_rows(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(K, N) -> the maximum of each column (N,) and its first row (N,) int64. Overwrites `scores`."""
    best = scores.amax(0)
    last = len(scores) - 1
    # Counted from the end, so that the largest number is the first of equal rows.
    from_end = torch.arange(last, -1, -1, device=scores.device, dtype=scores.dtype)[:, None]
    # Comparing into floats is ten times as fast as into bools, which do not vectorise.
    return best, (last - scores.eq_(best).mul_(from_end).amax(0)).long()


def visible_pixels(grid: Grid) -> Tensor:
    """(L, P*P) bool: the pixels of each place that do not hang over the edge of the canvas."""
    return grid.unfold(torch.ones(1, 1, grid.height, grid.width)).flatten(1, 4).view(grid.places, -1) > 0


def squared_norms(bank: PartBank, grid: Grid) -> Tensor:
    """(L, K): |b_k|^2 over the pixels of part k that are on the canvas at place l."""
    energy = bank.parts.square().sum(1).flatten(1)  # (K, P*P)
    return visible_pixels(grid).to(energy) @ energy.T


class EmptyCanvasGain:
    """The gain of every part at every place of an empty canvas; `grid` may have overlapping places."""

    def __init__(self, bank: PartBank, grid: Grid) -> None:
        device = bank.parts.device
        kinds, kind = visible_pixels(grid).unique(dim=0, return_inverse=True)
        first = torch.stack([(kind == i).nonzero()[0, 0] for i in range(len(kinds))])
        norms = squared_norms(bank, grid)[first.to(device)]  # (U, K)
        # The norms enter the product as U more columns, met by indicator rows of the kind of place.
        self.weight = torch.cat([2 * bank.parts.flatten(1), -norms.T], 1)  # (K, D + U)
        self.kind = F.one_hot(kind, len(kinds)).T.to(self.weight)[:, None]  # (U, 1, L)
        self.grid = grid
        self._buffers: list[Tensor] = []

    def scores(self, images: Tensor, buffer: Tensor | None = None) -> Tensor:
        """(B, C, h, w) -> (K, B*L), in `buffer` (of `buffer_size` numbers at least) where it is given."""
        grid, batch = self.grid, len(images)
        parts, rows = self.weight.shape
        size = batch * grid.places
        if buffer is None:
            buffer = images.new_empty(self.buffer_size(batch))
        columns = buffer[: rows * size].view(rows, batch, grid.places)
        pixels = rows - len(self.kind)
        view = windows(grid.pad(images), grid.patch, grid.stride)
        columns[:pixels].view(view.shape).copy_(view)
        columns[pixels:] = self.kind
        out = buffer[rows * size : (rows + parts) * size].view(parts, size)
        return torch.mm(self.weight, columns.flatten(1), out=out)

    def buffer_size(self, batch: int) -> int:
        return sum(self.weight.shape) * batch * self.grid.places

    def best(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> (B, L) the gain of the nearest part of each place, and (B, L) that part."""
        # A new block of this size costs more page faults than the product takes; each thread takes its own.
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = images.new_empty(0)
        if len(buffer) < self.buffer_size(len(images)):
            buffer = images.new_empty(self.buffer_size(len(images)))
        gain, part = best_rows(self.scores(images, buffer))
        self._buffers.append(buffer)
        return gain.view(-1, self.grid.places), part.view(-1, self.grid.places)


def canvas_gain(parts: Tensor, patch: Tensor, canvas: Tensor) -> Tensor:
    """Gain on a drawn canvas: sum of (canvas - x)^2 - (max(canvas, b_k) - x)^2 over the pixels.

    parts (K, D), patch and canvas (D, N) -> (K, N). With u = max(b_k - canvas, 0) and
    r = x - canvas the summand is u (2 r - u).
    """
    rise = (parts[:, :, None] - canvas).clamp_(min=0)
    return (2 * (patch - canvas) - rise).mul_(rise).sum(1)


def bound_coefficients(image: Tensor, canvas: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """p and s, such that a pixel's gain on a drawn canvas is at most p b - s b^2 for 0 <= b <= largest.

    image, canvas: pixels x >= 0 and c >= 0, of one shape; p and s have that shape too. So the bound
    of all parts at a place is one matrix product again. It is exact where c = 0. Derivation:
    the gain is 0 for b <= c and (c - x)^2 - (b - x)^2 above.
    x > c: s = ((x - c) / x)^2, p = 2 x s: 0 at b = 0 and the gain's own maximum at b = x.
    x <= c: s b (c - b) with the least (b + c - 2 x) / b over c <= b <= largest for s.
    """
    above = image > canvas
    over = torch.where(
        canvas >= 2 * image, 1 + (canvas - 2 * image) / largest, 2 * (canvas - image) / canvas
    ).masked_fill_(canvas >= largest, 0)
    s = torch.where(above, ((image - canvas) / image).square_(), over)
    return s * torch.where(above, 2 * image, canvas), s
