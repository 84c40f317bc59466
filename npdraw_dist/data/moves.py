"""Random moves of images, for training on more than there is: shift, rotation, stretching, shear, mirror.

Shapes: B batch, C channels, H x W image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from npdraw_dist.config.schema import TrainConfig
from npdraw_dist.core.images import ink


def moved(
    images: Tensor, settings: TrainConfig, generator: torch.Generator, background: float = 0.0
) -> Tensor:
    """uint8 images (B, C, H, W) -> the same, each moved with the chance `augmented`.

    Pixels are interpolated bilinearly unless `whole_pixels`. What comes in over the edge is background: 0.0
    black, 1.0 white.
    """
    batch, _, height, width = images.shape

    def uniform(limit: float) -> Tensor:
        """(B,) in [-limit, limit]."""
        noise = torch.rand(batch, generator=generator, device=images.device)
        return (2 * noise - 1) * limit

    chosen = torch.rand(batch, generator=generator, device=images.device) < settings.augmented
    angle = uniform(settings.rotate * math.pi / 180)
    across, down = uniform(settings.stretch).exp(), uniform(settings.stretch).exp()
    slope = uniform(settings.shear)
    right, lower = uniform(2 * settings.shift / width), uniform(2 * settings.shift / height)
    if settings.mirror:  # noise is drawn only then, so that runs without it keep theirs
        mirrored = torch.rand(batch, generator=generator, device=images.device) < settings.mirror
        side = 1 - 2 * mirrored.float()
    else:
        side = torch.ones_like(angle)
    cos, sin, aspect = angle.cos(), angle.sin(), height / width
    # From a place of the moved image to that of the image, both in [-1, 1]; `aspect` keeps angles of pixels.
    rows = [
        [side * cos * across, (slope - sin) * down * aspect, right],
        [side * sin * across / aspect, cos * down, lower],
    ]
    places = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = F.affine_grid(places, [batch, 1, height, width], align_corners=False)
    drawn = ink(images, background).float()  # grid_sample fills with 0
    how = "nearest" if settings.whole_pixels else "bilinear"
    new = F.grid_sample(drawn, grid, how, align_corners=False).round().clamp(0, 255).to(torch.uint8)
    return torch.where(chosen[:, None, None, None], ink(new, background), images)
