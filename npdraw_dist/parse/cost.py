"""Computes how much each part at each place reduces the squared error, for all parts and places at once.

The gain of part k at place l of an empty canvas is |x_l|^2 - |x_l - b_k|^2 = 2 x_l.b_k - |b_k|^2, over the
pixels on the canvas, so one matrix product gives all gains. Gains are sums of squared pixel differences.

Scores are (K, N) with one column for each patch, since a maximum over the first axis vectorises. The columns
of `EmptyCanvasGain` are ordered by place, then image, so that each pixel of a place is copied as a run of B
values.
Shapes: B batch, K parts, L places, C channels, P patch side, D = C P P, N = L B, U kinds of place, Hp x Wp
padded canvas.
"""

import threading
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid import Grid
from npdraw_dist.core.parts import PartBank

SKIPS_FROM = 100  # a CPU skips dim places if there are at least this many parts


def windows(images: Tensor, patch: int, stride: int) -> Tensor:
    """Views images (B, C, h, w) as (C, P, P, B, rows, columns): each pixel of a patch at all places."""
    return images.unfold(2, patch, stride).unfold(3, patch, stride).permute(1, 4, 5, 0, 2, 3)


def best_rows(scores: Tensor) -> tuple[Tensor, Tensor]:
    """scores (K, N) -> the maximum (N,) of each column, and the first row (N,) int64 with this maximum."""
    if scores.device.type != "cpu":
        largest, first = scores.max(0)
        return largest, first
    rows, columns = scores.shape
    if columns == 0:
        return scores.new_empty(0), scores.new_empty(0, dtype=torch.int64)
    # max and argmax compare one number at a time on a CPU. Max pooling of one image of K x 1 pixels and N
    # channels (channels last) gives the same maximum with vector registers, 15 times as fast.
    pixels = scores.contiguous().view(1, rows, 1, columns).permute(0, 3, 1, 2)
    best, index = F.max_pool2d(pixels, (rows, 1), return_indices=True)
    return best.view(columns), index.view(columns)


@dataclass(frozen=True)
class _Workspace:
    """Memory for the gains of B images. It is reused, since page faults of new memory double the time."""

    images: Tensor  # (B, C, h, w)
    padded: Tensor  # (C, Hp, Wp, B), 0 off the canvas
    columns: Tensor  # (D + U, L*B): the pixels of each place, then its kind as a one-hot code
    windows: Tensor  # (C, P, P, rows, columns, B), a view of `padded` with the values of `columns`
    scores: Tensor  # (K, L*B)


class EmptyCanvasGain:
    """Computes the gains of parts at places of an empty canvas; `best` may ignore gains below `least`."""

    def __init__(self, bank: PartBank, grid: Grid, least: float = 0.0) -> None:
        device, parts = bank.parts.device, bank.parts.flatten(1)
        visible = grid.unfold(torch.ones(1, 1, grid.height, grid.width)).view(grid.places, -1)
        norms = visible.to(device) @ bank.parts.square().sum(1).flatten(1).T  # (L, K): |b_k|^2 on the canvas
        # Places with the same pixels on the canvas are of one kind and share the norms.
        kinds, kind = visible.unique(dim=0, return_inverse=True)
        norms = norms[[kind.tolist().index(i) for i in range(len(kinds))]]  # (U, K)
        # The matrix product also subtracts the norms, using U more columns for the one-hot rows of the kinds.
        self.weight = torch.cat([2 * parts, -norms.T], 1)  # (K, D + U)
        # For uint8 images the weights are divided by 255 instead of the pixels.
        self.byte_weight = torch.cat([2 * parts / 255, -norms.T], 1)
        self.kind = F.one_hot(kind, len(kinds)).T.to(self.weight)  # (U, L)
        self.grid, self.channels = grid, bank.channels
        # If no pixel of a place is brighter than `dim`, |x|^2 and so all gains round to less than `least`.
        self.dim = (1 - 1e-4) * sqrt(least / parts.shape[1])
        # On a GPU, counting the lit places would wait for the device; with few parts, skipping saves no time.
        self.skips = device.type == "cpu" and len(parts) >= SKIPS_FROM
        # Maps a thread's id to its workspace. Python frees a `threading.local` while its thread ends, and
        # Ray processes crashed at that moment if it held tensors.
        self._work: dict[int, _Workspace] = {}

    def best(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the nearest part of each place of images (B, C, h, w), float in [0, 1] or uint8.

        Returns gain and part (B, L), which may be 0 where no part gains `least`, and |x|^2 (B,), the error of
        an empty canvas.
        """
        work, white = self._workspace(len(images)), 255 if images.dtype == torch.uint8 else 1
        work.images.copy_(images)  # converting and transposing bytes in one copy is slower
        self.grid.crop(work.padded.permute(3, 0, 1, 2)).copy_(work.images)
        pixels = work.columns[: len(work.columns) - len(self.kind)]
        pixels.view(work.windows.shape).copy_(work.windows)
        weight = self.byte_weight if white == 255 else self.weight
        if self.skips:
            lit = (pixels.amax(0) > white * self.dim).nonzero()[:, 0]
            gain, part = self._best_of(lit, work, weight)
        else:
            gain, part = best_rows(torch.mm(weight, work.columns, out=work.scores))
        energy = torch.linalg.vector_norm(work.images.flatten(1), dim=1).square_().div_(white**2)
        return gain.view(self.grid.places, -1).t(), part.view(self.grid.places, -1).t(), energy

    def _best_of(self, lit: Tensor, work: _Workspace, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The largest score and its first row for each column in `lit`; 0 and 0 for all other columns."""
        rows, count = len(work.scores), len(lit)
        scores = work.scores.flatten()[: rows * count].view(rows, count)
        best, first = best_rows(torch.mm(weight, work.columns.index_select(1, lit), out=scores))
        gain, part = best.new_zeros(work.columns.shape[1]), first.new_zeros(work.columns.shape[1])
        gain[lit], part[lit] = best, first
        return gain, part

    def _workspace(self, batch: int) -> _Workspace:
        """Returns this thread's workspace, and makes a new one if the batch size changes."""
        thread = threading.get_ident()
        work = self._work.get(thread)
        if work is not None and len(work.images) == batch:
            return work
        grid, (parts, rows) = self.grid, self.weight.shape
        padded = self.weight.new_zeros(self.channels, grid.padded_height, grid.padded_width, batch)
        view = padded.unfold(1, grid.patch, grid.stride).unfold(2, grid.patch, grid.stride)
        columns = padded.new_empty(rows, grid.places, batch)
        columns[rows - len(self.kind) :] = self.kind[:, :, None]
        scores = padded.new_empty(parts, grid.places * batch)
        images = padded.new_empty(batch, self.channels, grid.height, grid.width)
        work = _Workspace(images, padded, columns.flatten(1), view.permute(0, 4, 5, 1, 2, 3), scores)
        self._work[thread] = work
        return work


def canvas_gain(parts: Tensor, patch: Tensor, canvas: Tensor) -> Tensor:
    """Gains (K, N) of parts (K, D) on patches x (D, N) where `canvas` (D, N) is already drawn.

    A gain sums (canvas - x)^2 - (max(canvas, b_k) - x)^2 = u (2 r - u) over D pixels,
    with u = max(b_k - canvas, 0) and r = x - canvas.
    """
    rise = (parts[:, :, None] - canvas).clamp_(min=0)
    return (2 * (patch - canvas) - rise).mul_(rise).sum(1)


def bound_coefficients(image: Tensor, canvas: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Returns p and s such that a part's pixel b gains at most p b - s b^2, for 0 <= b <= largest.

    image, canvas: pixels x >= 0 and c >= 0; p and s have their shape. The bound is exact where c = 0.
    Derivation: the gain is 0 for b <= c and (c - x)^2 - (b - x)^2 for b > c.
    If x > c, s = ((x - c) / x)^2 and p = 2 x s. The bound is 0 at b = 0 and equals the maximum gain at b = x.
    If x <= c, p = c s, and s is the least (b + c - 2 x) / b over c <= b <= largest.
    """
    above = image > canvas
    over = torch.where(
        canvas >= 2 * image, 1 + (canvas - 2 * image) / largest, 2 * (canvas - image) / canvas
    ).masked_fill_(canvas >= largest, 0)
    s = torch.where(above, ((image - canvas) / image).square_(), over)
    return s * torch.where(above, 2 * image, canvas), s
