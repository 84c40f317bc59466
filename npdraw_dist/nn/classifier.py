"""A small classifier of images, whose features measure distances if there are no Inception weights.

Shapes: B images, C channels, H x W pixels, D features, N classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.nn.blocks import group_norm

WIDTHS = (32, 64)


class Classifier(nn.Module):
    """Two strided convolutions, one layer of D features, and one of the classes.

    `forward` gives the features, which `standardize` shifts and scales so that a distance has a natural unit.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int, features: int) -> None:
        super().__init__()
        channels, height, width = shape
        narrow, wide = WIDTHS
        cells = -(-height // 4) * -(-width // 4)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, narrow, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(narrow, wide, 3, 2, 1),
            group_norm(wide),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(wide * cells, features),
        )
        self.head = nn.Linear(features, classes)
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> features (B, D)."""
        features: Tensor = self.trunk(images * 2 - 1)
        return (features - self.shift) / self.scale

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, N)."""
        logits: Tensor = self.head(F.relu(self.trunk(images * 2 - 1)))
        return logits

    @torch.no_grad()
    def standardize(self, images: Tensor) -> None:
        """Sets shift and scale: the features of `images` (B, C, H, W) then have mean 0 and variance 1."""
        features = self.trunk(images * 2 - 1)
        self.shift.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=1e-6))
