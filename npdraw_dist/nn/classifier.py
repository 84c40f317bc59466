"""A small classifier of images, whose features measure distances where there are no Inception weights.

Shapes: B images, C channels, H x W pixels, D features, N classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npdraw_dist.nn.blocks import group_norm

WIDTHS = (32, 64)


class Classifier(nn.Module):
    """Two strided convolutions, one layer of D features, and one of the classes.

    Its forward gives the features: they are positive and of no use to a person, but near for images alike.
    """

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

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> features (B, D)."""
        return F.relu(self.trunk(images * 2 - 1))

    @torch.jit.ignore
    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, N)."""
        return self.head(self.forward(images))
