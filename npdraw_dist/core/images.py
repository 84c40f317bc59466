"""Converts bytes to floats, and images to canvases."""

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Pixels = TypeVar("Pixels", Tensor, NDArray[np.uint8])


def to_float(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (..., H, W) in 0..255 -> float32 in [0, 1]."""
    tensor = images if isinstance(images, Tensor) else torch.tensor(images)
    return tensor.float() / 255


def ink(pixels: Pixels, background: float) -> Pixels:
    """|pixels - background|: how far pixels of any shape, float in [0, 1] or uint8, are from an empty canvas.

    It is its own inverse (up to rounding, if float). background: 0.0 (black) or 1.0 (white).
    """
    if background == 0:
        return pixels
    return (255 if pixels.dtype in (torch.uint8, np.uint8) else 1) - pixels


def to_canvas(images: Tensor, downscale: int) -> Tensor:
    """Float (B, C, H, W) -> (B, C, H / downscale, W / downscale) by area averaging."""
    return images if downscale == 1 else F.avg_pool2d(images, downscale)


def canvas_bytes(images: NDArray[np.uint8], downscale: int) -> NDArray[np.uint8]:
    """uint8 images (N, C, H, W) -> uint8 (N, C, h, w), the input of bank and parser, never binarised."""
    return images if downscale == 1 else to_small(torch.from_numpy(images), downscale).numpy()


def to_small(images: Tensor, downscale: int) -> Tensor:
    """`canvas_bytes` of a tensor."""
    return images if downscale == 1 else to_canvas(images.float(), downscale).round().to(torch.uint8)
