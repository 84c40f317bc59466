"""DRAW's selective attention: a grid of Gaussian filters over the image (Gregor et al. 2015, section 3.2).

Shapes: B images, C channels, H x W image, N filters an axis.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from npdraw_dist.nn.precision import at_least_float32, exactly

EPSILON = 1e-8


class Window(NamedTuple):
    """An N x N grid of filters, each (B,): its centre and stride in pixels, variance, log intensity."""

    row: Tensor
    column: Tensor
    stride: Tensor
    variance: Tensor
    log_gamma: Tensor

    @classmethod
    def of(cls, raw: Tensor, size: int, height: int, width: int) -> "Window":
        """raw (B, 5), a linear map of the decoder's state -> the window (eq. 21 to 24), pixels from 0."""
        column, row, log_variance, log_stride, log_gamma = raw.float().unbind(1)
        stride = (max(height, width) - 1) / max(size - 1, 1) * log_stride.exp()
        return cls(
            (height + 1) / 2 * (row + 1) - 1,
            (width + 1) / 2 * (column + 1) - 1,
            stride,
            log_variance.exp(),
            log_gamma,
        )

    def filters(self, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Rows (B, N, H) and columns (B, N, W) of the filters, each summing to 1 (eq. 19, 20, 25, 26)."""
        offset = torch.arange(size, device=self.stride.device) - (size - 1) / 2
        steps = offset * self.stride[:, None]
        return (
            _bank(self.row[:, None] + steps, self.variance, height),
            _bank(self.column[:, None] + steps, self.variance, width),
        )

    def box(self, size: int) -> Tensor:
        """(B, 3): top, left and side in pixels of the square between the outermost filters."""
        side = self.stride * max(size - 1, 1)
        return torch.stack([self.row - side / 2, self.column - side / 2, side], 1)


def _bank(centres: Tensor, variance: Tensor, length: int) -> Tensor:
    """centres (B, N) -> (B, N, length)."""
    places = torch.arange(length, device=centres.device, dtype=centres.dtype)
    distance = (places - centres[..., None]).square()
    # A softmax, so that a filter that lies far outside still sums to 1 and has a gradient to come back.
    return torch.softmax(-distance / (2 * variance[:, None, None] + EPSILON), -1)


def read(image: Tensor, window: Window, size: int) -> Tensor:
    """(B, C, H, W) -> (B, C, N, N), gamma F_Y x F_X^T (eq. 27)."""
    rows, columns = window.filters(size, *image.shape[-2:])
    with exactly(image):
        patch = torch.einsum("bnh,bchw,bmw->bcnm", rows, at_least_float32(image), columns)
    return patch * window.log_gamma.exp()[:, None, None, None]


def write(patch: Tensor, window: Window, height: int, width: int) -> Tensor:
    """(B, C, N, N) -> (B, C, H, W), F_Y^T w F_X / gamma (eq. 29)."""
    rows, columns = window.filters(patch.shape[-1], height, width)
    with exactly(patch):  # parameters of the likelihood
        image = torch.einsum("bnh,bcnm,bmw->bchw", rows, at_least_float32(patch), columns)
    return image * torch.exp(-window.log_gamma)[:, None, None, None]
