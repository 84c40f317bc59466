"""Computes the corner and the pixels of each place, a square of the canvas where a part can be drawn.

Only this file and `grid_sizes.py` define how places are laid out.

Shapes: B batch, L places, C channels, P patch side, H x W canvas, Hp x Wp padded canvas.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.core.grid_sizes import GridSizes
from npdraw_dist.core.images import Pixels, ink


@dataclass(frozen=True)
class Grid(GridSizes):
    """`GridSizes`, with the corners and pixels of the places."""

    @cached_property
    def corners(self) -> Tensor:
        """(L, 2) int64: row and column of each place's top-left pixel, negative if outside the canvas."""
        return self.padded_corners - torch.tensor([self.top, self.left])

    def centres(self, scale: int) -> Tensor:
        """(L, 2) int64: the centre of each place, in pixels of a canvas enlarged `scale` times."""
        return scale * self.corners + scale * self.patch // 2

    @cached_property
    def padded_corners(self) -> Tensor:
        """(L, 2) int64: `corners` in coordinates of the padded canvas, never negative."""
        rows = torch.arange(self.rows) * self.stride
        columns = torch.arange(self.columns) * self.stride
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)

    @cached_property
    def pixels(self) -> Tensor:
        """(L, P*P) int64: flat indices of each place's pixels in the padded canvas."""
        side = torch.arange(self.patch)
        offsets = (side[:, None] * self.padded_width + side).reshape(-1)
        return (self.padded_corners[:, :1] * self.padded_width + self.padded_corners[:, 1:]) + offsets

    def ink(self, pixels: Pixels) -> Pixels:
        """The ink |pixels - background| of pixels of any shape; see `core.images.ink`."""
        return ink(pixels, self.background)

    @cached_property
    def of_ink(self) -> "Grid":
        """The same places on a black canvas, for canvases that hold ink or coverage, not pixels."""
        return replace(self, background=0.0) if self.background else self

    def pad(self, images: Tensor) -> Tensor:
        """(..., H, W) -> (..., Hp, Wp), with the background in the `margins`."""
        white = 255 if images.dtype == torch.uint8 else 1
        return F.pad(images, self.margins, value=white * self.background)

    def crop(self, canvas: Tensor) -> Tensor:
        """(..., Hp, Wp) -> (..., H, W)."""
        return canvas[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def unfold(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, C, P, P), the patch at each place, with the background beyond the edge."""
        windows = self.pad(images).unfold(2, self.patch, self.stride).unfold(3, self.patch, self.stride)
        return windows.permute(0, 2, 3, 1, 4, 5).reshape(
            images.shape[0], self.places, images.shape[1], self.patch, self.patch
        )

    def fold_sum(self, patches: Tensor) -> Tensor:
        """(B, L, C, P, P) -> (B, C, H, W): sums the patches at their places; the adjoint of `unfold`."""
        batch, _, channels = patches.shape[:3]
        if self.disjoint:
            tiles = patches.view(batch, self.rows, self.columns, channels, self.patch, self.patch)
            canvas = tiles.permute(0, 3, 1, 4, 2, 5).reshape(
                batch, channels, self.padded_height, self.padded_width
            )
            return self.crop(canvas)
        columns = patches.reshape(batch, self.places, -1).transpose(1, 2)
        size = (self.padded_height, self.padded_width)
        return self.crop(F.fold(columns, size, self.patch, stride=self.stride))


@lru_cache(maxsize=64)  # otherwise each call would copy the indices to the device
def pixels_on(grid: Grid, device: torch.device) -> Tensor:
    return grid.pixels.to(device)


@lru_cache(maxsize=64)
def squared_distances_on(grid: Grid, device: torch.device) -> Tensor:
    """(L, L) int32: the squared distance in pixels between the corners of every pair of places."""
    corners = grid.corners.int()
    return (corners[:, None] - corners[None]).square().sum(-1).int().to(device)
