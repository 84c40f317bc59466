"""The spatial transformer of AIR (Jaderberg et al. 2015): a square window cut out of an image, or put in.

A window is (scale, x, y): its side as a share of the image's, and its centre in [-1, 1] from left to right
and from top to bottom. Values between pixels are bilinear, those outside the image zero.
Shapes: B images, C channels, H x W image, N x N window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.nn.precision import exactly


def cut(image: Tensor, window: Tensor, size: int) -> Tensor:
    """image (B, C, H, W), window (B, 3) -> what lies in it, (B, C, N, N)."""
    scale, x, y = window.unbind(1)
    grid = _grid(scale, x, y, (len(image), image.shape[1], size, size))
    return F.grid_sample(image, grid, align_corners=False)


def put(glimpse: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """glimpse (B, C, N, N), window (B, 3) -> (B, C, H, W), zero outside the window: the inverse of `cut`."""
    scale, x, y = window.unbind(1)
    grid = _grid(1 / scale, -x / scale, -y / scale, (len(glimpse), glimpse.shape[1], height, width))
    return F.grid_sample(glimpse, grid, align_corners=False)


def _grid(scale: Tensor, x: Tensor, y: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    zero = torch.zeros_like(scale)
    rows = [torch.stack([scale, zero, x], 1), torch.stack([zero, scale, y], 1)]
    with exactly(scale):  # a product, whose rounding would move the window
        return F.affine_grid(torch.stack(rows, 1), list(shape), align_corners=False)


def box(window: Tensor, height: int, width: int) -> Tensor:
    """window (..., 3) -> top, left and side in pixels, (..., 3); of an oblong image the longer side's."""
    scale, x, y = window.unbind(-1)
    side = scale * max(height, width)
    return torch.stack([(y + 1) / 2 * height - side / 2, (x + 1) / 2 * width - side / 2, side], -1)
