"""What a part at a place takes off the squared error, for all parts and places at once.

The cost of part k at place l of an empty canvas is |x_l|^2 - 2 x_l.b_k + |b_k|^2, over the pixels
of the place that the canvas has; its gain is |x_l|^2 less that, so that |x_l|^2 drops out and
2 x_l.b_k - |b_k|^2 is left: one matrix product. Units: sums of squared pixel differences.

Scores are (K, N), one column a patch: maxima over the first axis vectorise, where an argmax over
rows of K does not. The columns of EmptyCanvasGain run over the images first and the places then, so
that the pixels of a place are copied in runs of B.
Shapes: B batch, K parts, L places, C channels, P patch side, D = C P P, N = L B, U kinds of place,
Hp x Wp padded canvas.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank


def windows(images: Tensor, patch: int, stride: int) -> Tensor:
    """(B, C, h, w) -> (C, P, P, B, rows, columns), a view: pixel by pixel, the patch at each place."""
    return images.unfold(2, patch, stride).unfold(3, patch, stride).permute(1, 4, 5, 0, 2, 3)


def best_rows(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(K, N) -> the maximum of each column (N,) and its first row (N,) int64."""
    if scores.device.type != "cpu":
        largest, first = scores.max(0)
        return largest, first
    rows, columns = scores.shape
    # On a CPU max and argmax compare number by number; pooling an image of K x 1 pixels and N
    # channels (channels last) is the same maximum, in the widest registers: 15 times as fast.
    pixels = scores.contiguous().view(1, rows, 1, columns).permute(0, 3, 1, 2)
    best, index = F.max_pool2d(pixels, (rows, 1), return_indices=True)
    return best.view(columns), index.view(columns)


def visible_pixels(grid: Grid) -> Tensor:
    """(L, P*P) bool: the pixels of each place that do not hang over the edge of the canvas."""
    return grid.unfold(torch.ones(1, 1, grid.height, grid.width)).flatten(1, 4).view(grid.places, -1) > 0


def squared_norms(bank: PartBank, grid: Grid) -> Tensor:
    """(L, K): |b_k|^2 over the pixels of part k that are on the canvas at place l."""
    energy = bank.parts.square().sum(1).flatten(1)  # (K, P*P)
    return visible_pixels(grid).to(energy) @ energy.T


@dataclass(frozen=True)
class _Workspace:
    """What the gains of B images are computed in; a new one costs more page faults than they take."""

    images: Tensor  # (B, C, h, w)
    padded: Tensor  # (C, Hp, Wp, B), 0 off the canvas
    columns: Tensor  # (D + U, L*B): the pixels of each place, and the indicators of its kind
    windows: Tensor  # (C, P, P, rows, columns, B), the view of `padded` that `columns` takes
    scores: Tensor  # (K, L*B)


class EmptyCanvasGain:
    """The gain of every part at every place of an empty canvas; `grid` may have overlapping places."""

    def __init__(self, bank: PartBank, grid: Grid) -> None:
        device = bank.parts.device
        kinds, kind = visible_pixels(grid).unique(dim=0, return_inverse=True)
        first = torch.stack([(kind == i).nonzero()[0, 0] for i in range(len(kinds))])
        norms = squared_norms(bank, grid)[first.to(device)]  # (U, K)
        # The norms enter the product as U more columns, met by indicator rows of the kind of place.
        self.weight = torch.cat([2 * bank.parts.flatten(1), -norms.T], 1)  # (K, D + U)
        # Bytes are not divided by 255: their weights are.
        self.byte_weight = torch.cat([2 * bank.parts.flatten(1) / 255, -norms.T], 1)
        self.kind = F.one_hot(kind, len(kinds)).T.to(self.weight)  # (U, L)
        self.grid, self.channels = grid, bank.channels
        self._free: list[_Workspace] = []

    def scores(self, images: Tensor) -> Tensor:
        """(B, C, h, w), float or uint8 -> (K, L*B)."""
        return self._scores(images, self._workspace(len(images)))

    def best(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images (B, C, h, w), float in [0, 1] or uint8: the nearest part of each place.

        Returns its gain (B, L), the part (B, L) and |x|^2 (B,), the squared error of an empty canvas.
        """
        try:
            work = self._free.pop()  # so that threads do not meet in one
        except IndexError:
            work = None
        if work is None or work.padded.shape[-1] != len(images):
            work = self._workspace(len(images))
        gain, part = best_rows(self._scores(images, work))
        energy = torch.linalg.vector_norm(work.images.flatten(1), dim=1).square_()
        if images.dtype == torch.uint8:
            energy /= 255**2
        self._free.append(work)
        return gain.view(self.grid.places, -1).t(), part.view(self.grid.places, -1).t(), energy

    def _scores(self, images: Tensor, work: _Workspace) -> Tensor:
        work.images.copy_(images)  # before it is turned: to convert and turn bytes at once is slower
        self.grid.crop(work.padded.permute(3, 0, 1, 2)).copy_(work.images)
        pixels = len(work.columns) - len(self.kind)
        work.columns[:pixels].view(work.windows.shape).copy_(work.windows)
        weight = self.byte_weight if images.dtype == torch.uint8 else self.weight
        return torch.mm(weight, work.columns, out=work.scores)

    def _workspace(self, batch: int) -> _Workspace:
        grid, (parts, rows) = self.grid, self.weight.shape
        padded = self.weight.new_zeros(self.channels, grid.padded_height, grid.padded_width, batch)
        view = padded.unfold(1, grid.patch, grid.stride).unfold(2, grid.patch, grid.stride)
        columns = padded.new_empty(rows, grid.places, batch)
        columns[rows - len(self.kind) :] = self.kind[:, :, None]
        scores = padded.new_empty(parts, grid.places * batch)
        images = padded.new_empty(batch, self.channels, grid.height, grid.width)
        return _Workspace(images, padded, columns.flatten(1), view.permute(0, 4, 5, 1, 2, 3), scores)


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
